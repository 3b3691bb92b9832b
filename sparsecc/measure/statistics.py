"""Summaries of timings: percentiles of one model, the ratio of two with its interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy

Times = npt.NDArray[np.float64]
RESAMPLES = 2000
_CHUNK = 4_000_000


@dataclass(frozen=True)
class Percentiles:
    """Milliseconds per run."""

    p50: float
    p90: float
    p99: float
    mean: float
    n: int

    @staticmethod
    def of(milliseconds: Times) -> Percentiles:
        """Of at least one sample."""
        p50, p90, p99 = (float(q) for q in np.percentile(milliseconds, (50, 90, 99)))
        return Percentiles(p50, p90, p99, float(np.mean(milliseconds)), len(milliseconds))

    def to_json(self) -> dict[str, Any]:
        return {"p50": self.p50, "p90": self.p90, "p99": self.p99, "mean": self.mean, "n": self.n}


@dataclass(frozen=True)
class LogRatio:
    """The typical d = ln(t_after / t_before), with its interval (95 % unless told); 0 means equally fast."""

    median: float
    low: float
    high: float

    @property
    def speedup(self) -> float:
        """t_before / t_after: above 1 when the second is faster."""
        return math.exp(-self.median)

    def to_json(self) -> dict[str, Any]:
        """As a speedup: `estimate` and `ci95`."""
        return {"estimate": self.speedup, "ci95": [math.exp(-self.high), math.exp(-self.low)]}


def log_ratio(before: Times, after: Times, *, seed: int, resamples: int = RESAMPLES) -> LogRatio:
    """The paired comparison of two equally long series of positive times.

    The interval is the percentile bootstrap of the median over the pairs, from `seed` alone.
    """
    differences = np.log(after / before)
    low, high = bootstrap_median(differences, seed=seed, resamples=resamples)
    return LogRatio(float(np.median(differences)), low, high)


def ratio_of_rounds(differences: Sequence[Times], *, confidence: float = 0.95) -> LogRatio:
    """The mean over rounds of each round's median d, with Student's interval over the rounds; two at least.

    Pairs of one round share their sessions, and where a session's memory lies moves its speed: pairs are no
    independent draws, rounds are. An interval over all pairs alike would be too narrow.
    """
    medians = np.array([float(np.median(d)) for d in differences])
    middle = float(medians.mean())
    error = float(medians.std(ddof=1)) / math.sqrt(len(medians))
    reach = error * float(scipy.special.stdtrit(len(medians) - 1, (1 + confidence) / 2))
    return LogRatio(middle, middle - reach, middle + reach)


def bootstrap_median(values: Times, *, seed: int, resamples: int = RESAMPLES) -> tuple[float, float]:
    """The 2.5 % and 97.5 % points of the median over resampled `values`."""
    generator = np.random.default_rng(seed)
    medians: list[Times] = []
    step = max(1, _CHUNK // len(values))
    for start in range(0, resamples, step):
        picks = generator.integers(0, len(values), size=(min(step, resamples - start), len(values)))
        medians.append(np.median(values[picks], axis=1))
    low, high = np.percentile(np.concatenate(medians), (2.5, 97.5))
    return float(low), float(high)
