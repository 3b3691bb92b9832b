"""Interleaved A/B timing in one process: pairs in random order, so that drift and load hit both alike."""

from __future__ import annotations

import gc
import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from sparsecc.errors import InputError
from sparsecc.measure.statistics import LogRatio, Percentiles, Times, log_ratio, ratio_of_rounds
from sparsecc.system.gc_pause import collector_paused

Run = Callable[[], object]
"""One inference."""

Clock = Literal["cpu", "wall", "gpu"]
SHORTEST_SAMPLE = 1e-3
"""Seconds. Runs shorter than this are repeated inside one sample."""

_LONGEST_SAMPLE = 0.05
_MOST_REPEATS = 10_000
_FEWEST_PAIRS = 5


@dataclass(frozen=True)
class Budget:
    """How long to measure: until `pairs` pairs are done or `seconds` are over, at least 5 pairs."""

    pairs: int = 100
    seconds: float = 20.0
    warmup_seconds: float = 0.3

    def __post_init__(self) -> None:
        if self.pairs < _FEWEST_PAIRS or self.seconds <= 0:
            raise InputError(f"a measurement needs at least {_FEWEST_PAIRS} pairs and some seconds")


@dataclass(frozen=True)
class Comparison:
    """Two runs measured side by side. Arrays hold milliseconds per run, one entry per pair, in time order.

    `clock` names the one that `ratio` is computed from: "cpu" is the time that this process (all its
    threads) spent on the processor, which other processes do not disturb; "gpu" is that between events on a GPU,
    which both pairs of arrays then hold. `rounds` says how many pairs
    each round of fresh sessions holds; empty means that all pairs come from one.
    """

    cpu_before: Times
    cpu_after: Times
    wall_before: Times
    wall_after: Times
    clock: Clock
    repeats: int
    threads: int
    seed: int
    extra: dict[str, Any] = field(default_factory=dict)
    rounds: tuple[int, ...] = ()

    @property
    def pairs(self) -> int:
        return len(self.cpu_before)

    @property
    def before(self) -> Percentiles:
        return Percentiles.of(self._samples(self.clock)[0])

    @property
    def after(self) -> Percentiles:
        return Percentiles.of(self._samples(self.clock)[1])

    def ratio(self, clock: Clock | None = None, *, confidence: float = 0.95) -> LogRatio:
        """ln(t_after / t_before) by the comparison's own clock, or by the other.

        Over rounds where there are several (then `confidence` counts), else over the pairs (95 %).
        """
        before, after = self._samples(clock or self.clock)
        if len(self.rounds) < 2:
            return log_ratio(before, after, seed=self.seed)
        ends = np.cumsum(self.rounds)[:-1]
        return ratio_of_rounds(np.split(np.log(after / before), ends), confidence=confidence)

    def joined(self, other: Comparison) -> Comparison:
        """The pairs of both as one comparison of two rounds, the other's last."""
        return Comparison(
            np.concatenate((self.cpu_before, other.cpu_before)),
            np.concatenate((self.cpu_after, other.cpu_after)),
            np.concatenate((self.wall_before, other.wall_before)),
            np.concatenate((self.wall_after, other.wall_after)),
            self.clock,
            self.repeats,
            self.threads,
            self.seed,
            self.extra,
            (*(self.rounds or (self.pairs,)), *(other.rounds or (other.pairs,))),
        )

    def to_json(self) -> dict[str, Any]:
        """The `latency` object of report.json, the wall clock beside it, and the raw samples."""
        result = self._clock_json(self.clock)
        result |= {"clock": self.clock, "threads": self.threads, "pairs": self.pairs, "repeats": self.repeats}
        result["rounds"] = len(self.rounds) or 1
        clocks: tuple[Clock, ...] = ("gpu",) if self.clock == "gpu" else ("cpu", "wall")
        for other in clocks:
            if other != self.clock:
                result[other] = self._clock_json(other)
        sides = {clock: zip(("before", "after"), self._samples(clock), strict=True) for clock in clocks}
        result["samples_ms"] = {
            f"{clock}_{side}": [round(float(t), 6) for t in times]
            for clock, both in sides.items()
            for side, times in both
        }
        return result | self.extra

    def _clock_json(self, clock: Clock) -> dict[str, Any]:
        before, after = self._samples(clock)
        return {
            "before_ms": Percentiles.of(before).to_json(),
            "after_ms": Percentiles.of(after).to_json(),
            "speedup": self.ratio(clock).to_json(),
        }

    def _samples(self, clock: Clock) -> tuple[Times, Times]:
        if clock == "cpu":
            return self.cpu_before, self.cpu_after
        return self.wall_before, self.wall_after


def compare(
    before: Run,
    after: Run,
    *,
    budget: Budget | None = None,
    clock: Clock = "cpu",
    threads: int = 1,
    seed: int = 0,
) -> Comparison:
    """Time two runs in pairs of random order (AB or BA, from `seed`) in this process.

    `threads` is recorded only. Both runs are warmed up first; a run under 1 ms is repeated within a sample,
    equally often on both sides.
    """
    budget = budget or Budget()
    order = random.Random(seed)
    repeats = _repeats(_warm_up(before, budget), _warm_up(after, budget))
    first: list[tuple[float, float]] = []
    second: list[tuple[float, float]] = []
    gc.collect()
    with collector_paused():
        end = time.perf_counter() + budget.seconds
        while len(first) < budget.pairs and (len(first) < _FEWEST_PAIRS or time.perf_counter() < end):
            if order.random() < 0.5:
                first.append(_sample(before, repeats))
                second.append(_sample(after, repeats))
            else:
                second.append(_sample(after, repeats))
                first.append(_sample(before, repeats))
    one, two = np.array(first), np.array(second)
    return Comparison(one[:, 0], two[:, 0], one[:, 1], two[:, 1], clock, repeats, threads, seed)


def time_alone(run: Run, *, budget: Budget | None = None) -> tuple[Times, Times]:
    """(CPU, wall) milliseconds per run of one model; for profiles, not for comparisons."""
    budget = budget or Budget()
    repeats = _repeats(_warm_up(run, budget))
    samples: list[tuple[float, float]] = []
    gc.collect()
    with collector_paused():
        end = time.perf_counter() + budget.seconds
        while len(samples) < budget.pairs and (len(samples) < _FEWEST_PAIRS or time.perf_counter() < end):
            samples.append(_sample(run, repeats))
    both = np.array(samples)
    return both[:, 0], both[:, 1]


def shortest_ms(run: Run, times: int) -> float:
    """Wall milliseconds of the fastest of some runs: what it takes when nothing disturbs it."""
    fastest = math.inf
    for _ in range(times):
        start = time.perf_counter()
        run()
        fastest = min(fastest, time.perf_counter() - start)
    return fastest * 1e3


def _warm_up(run: Run, budget: Budget) -> float:
    """Run for the warm-up time, three times at least, or once where a run outlasts a sample: later ones are no faster
    then. The seconds of the fastest run."""
    fastest = math.inf
    end = time.perf_counter() + budget.warmup_seconds
    count = 0
    while count < (3 if fastest < _LONGEST_SAMPLE else 1) or time.perf_counter() < end:
        start = time.perf_counter()
        run()
        fastest = min(fastest, time.perf_counter() - start)
        count += 1
    return fastest


def _repeats(*seconds: float) -> int:
    """Enough for the fastest run to fill a sample, few enough for the slowest to leave time for many."""
    enough = math.ceil(SHORTEST_SAMPLE / max(min(seconds), 1e-9))
    return max(1, min(_MOST_REPEATS, enough, int(_LONGEST_SAMPLE / max(*seconds, 1e-9))))


def _sample(run: Run, repeats: int) -> tuple[float, float]:
    """(CPU, wall) milliseconds of one run, the mean over `repeats`."""
    wall, cpu = time.perf_counter_ns(), time.process_time_ns()
    for _ in range(repeats):
        run()
    cpu, wall = time.process_time_ns() - cpu, time.perf_counter_ns() - wall
    return max(cpu, 1) / repeats / 1e6, max(wall, 1) / repeats / 1e6
