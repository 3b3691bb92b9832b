"""Calibration: run the float model, watch its values, choose each one's range."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from sparsecc.compilation import Compilation
from sparsecc.errors import InputError
from sparsecc.passes.quantize.body_ranges import show_ends
from sparsecc.runtime.segments import activations

METHODS = ("minmax", "percentile", "entropy", "mse")
BINS = 2048
MOST = 65536
"""Numbers of a value that are kept, of all batches alike."""


@dataclass
class ValueStats:
    """What calibration saw of one value. `histogram` counts BINS equal bins from `low` to `high`."""

    low: float = 0.0
    high: float = 0.0
    count: int = 0
    at_edge: int = 0
    histogram: np.ndarray = field(default_factory=lambda: np.zeros(BINS))
    sample: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    thinned: int = 1
    """`sample` has every so many-th of the values that are looked at."""

    def clipped(self, low: float, high: float) -> float:
        """The share of all values that lies outside of a range; of the sample where no histogram was taken."""
        total = self.histogram.sum()
        if not total:
            return float(((self.sample < low) | (self.sample > high)).mean()) if self.sample.size else 0.0
        centres = self.centres()
        return float(self.histogram[(centres < low) | (centres > high)].sum() / total)

    def centres(self) -> np.ndarray:
        """The middle of every bin."""
        edges = np.linspace(self.low, self.high, BINS + 1)
        return (edges[1:] + edges[:-1]) / 2


def collect(
    model: ir.Model,
    names: Sequence[str],
    compilation: Compilation,
    *,
    histogram: bool,
    level: str = "all",
    infinite: bool = False,
) -> dict[str, ValueStats]:
    """Ranges (and histograms, in a second run) of values over the calibration set; of those in bodies the ends alone.

    InputError on NaN or infinity unless `infinite`, which takes the ranges of the finite numbers.
    """
    stats = {name: ValueStats() for name in names}
    outer = {value.name for value in model.graph.inputs} | {
        v.name for node in model.graph for v in node.outputs
    }
    inner = [name for name in names if name not in outer]
    settings: dict[str, Any] = {"level": level, "infinite": infinite}
    for look in (_widen, _count) if histogram else (_widen,):
        for name, array in observed(model, [one for one in names if one in outer], compilation, **settings):
            look(stats[name], array)
    if inner:
        shown = model.clone()
        named = {end: name for name, end in show_ends(shown, inner, infinite=infinite).items()}
        for end, array in observed(shown, list(named), compilation, **settings):
            seen = stats[named[end]]
            seen.low, seen.high = float(min(seen.low, *array)), float(max(seen.high, *array))
    return stats


def observed(
    model: ir.Model,
    names: Sequence[str],
    compilation: Compilation,
    *,
    level: str = "all",
    infinite: bool = False,
) -> Iterator[tuple[str, np.ndarray]]:
    """(name, array) of the named values over the calibration set.

    InputError on NaN or infinity; where these are allowed they are left out of the array.
    """
    with tempfile.TemporaryDirectory(dir=compilation.scratch.folder) as folder:
        for name, array in activations(
            model,
            names,
            compilation.pass_feeds,
            Path(folder),
            memory=compilation.options.working_memory,
            level=level,
        ):
            finite = np.isfinite(array) if array.dtype.kind == "f" else np.True_
            if not infinite and not finite.all():
                raise InputError(
                    f"calibration: value '{name}' holds NaN or infinity: check the calibration data and the model"
                )
            yield name, array if finite.all() else array[finite]


def _widen(seen: ValueStats, array: np.ndarray) -> None:
    if array.size == 0 or array.dtype.kind != "f":
        return
    seen.low = min(seen.low, float(array.min()))
    seen.high = max(seen.high, float(array.max()))
    seen.count += array.size
    flat = array.reshape(-1)
    step = max(1, flat.size // 4096) * seen.thinned
    seen.sample = np.concatenate([seen.sample, flat[::step].astype(np.float32)])
    if seen.sample.size > MOST:
        seen.sample, seen.thinned = seen.sample[::2], 2 * seen.thinned


def _count(seen: ValueStats, array: np.ndarray) -> None:
    if array.dtype.kind == "f" and seen.high > seen.low:
        counts, _ = np.histogram(array, bins=BINS, range=(seen.low, seen.high))
        seen.histogram += counts


def choose_range(stats: ValueStats, method: str, *, percentile: float = 99.99) -> tuple[float, float]:
    """The real range to represent: `minmax` all of it, the others may clip rare values."""
    if method == "minmax" or stats.histogram.sum() == 0:
        return stats.low, stats.high
    if method == "percentile":
        return _percentile_range(stats, percentile)
    if method == "mse":
        return _mse_range(stats)
    if method == "entropy":
        return _entropy_range(stats)
    raise InputError(f"quantize: unknown calibration method '{method}': methods are {', '.join(METHODS)}")


def _percentile_range(stats: ValueStats, percentile: float) -> tuple[float, float]:
    share = np.cumsum(stats.histogram) / stats.histogram.sum()
    edges = np.linspace(stats.low, stats.high, BINS + 1)
    tail = 1 - percentile / 100
    low = edges[int(np.searchsorted(share, tail, side="right"))] if stats.low < 0 else stats.low
    high = edges[min(BINS, int(np.searchsorted(share, 1 - tail)) + 1)]
    return float(min(low, 0.0)), float(max(high, 0.0))


def _mse_range(stats: ValueStats) -> tuple[float, float]:
    """The shrunk range with the least squared error of 8-bit rounding and clipping over the histogram."""
    centres, counts = stats.centres(), stats.histogram
    best = (np.inf, stats.low, stats.high)
    for share in np.linspace(0.3, 1.0, 71):
        low, high = min(stats.low * share, 0.0), max(stats.high * share, 0.0)
        step = (high - low) / 255
        if step <= 0:
            continue
        clipped = np.clip(centres, low, high)
        error = np.square(centres - clipped) + np.where(clipped == centres, step * step / 12, 0.0)
        best = min(best, (float((counts * error).sum()), low, high))
    return best[1], best[2]


def _entropy_range(stats: ValueStats) -> tuple[float, float]:
    """The clipping magnitude whose 8-bit histogram keeps the least KL divergence (Migacz, GTC 2017).

    The bin at zero is evened out: after a Relu it holds half of the values and would decide alone.
    """
    largest = max(-stats.low, stats.high)
    counts, _ = np.histogram(np.abs(stats.centres()), bins=BINS, range=(0, largest), weights=stats.histogram)
    counts[0] = counts[1]
    levels = 128 if stats.low < 0 else 255
    best_bins, best = BINS, np.inf
    for kept in range(levels, BINS + 1, 16):
        divergence = _divergence(counts, kept, levels)
        if divergence < best:
            best_bins, best = kept, divergence
    limit = largest * best_bins / BINS
    return max(stats.low, -limit), min(stats.high, limit)


def _divergence(counts: np.ndarray, kept: int, levels: int) -> float:
    inside = counts[:kept].astype(np.float64)
    target = inside.copy()
    target[-1] += counts[kept:].sum()
    level = (np.arange(kept) * levels) // kept
    occupied = inside > 0
    sums = np.bincount(level, weights=inside, minlength=levels)
    filled = np.bincount(level, weights=occupied.astype(np.float64), minlength=levels)
    model = np.where(occupied, (sums / np.maximum(filled, 1))[level], 0.0)
    p, q = target / max(target.sum(), 1e-12), model / max(model.sum(), 1e-12)
    both = (p > 0) & (q > 0)
    lost = p[(p > 0) & (q == 0)].sum()
    return float((p[both] * np.log(p[both] / q[both])).sum() + lost * 10)


def warnings_of(stats: Mapping[str, ValueStats], inputs: Sequence[str]) -> list[str]:
    """What looks wrong with the calibration set: inputs that never vary or pile up at their limits."""
    found = []
    for name in inputs:
        seen = stats.get(name)
        if seen is None or seen.sample.size == 0:
            continue
        if seen.sample.min() == seen.sample.max():
            found.append(f"calibration input '{name}' is constant: ranges mean nothing, give varied data")
            continue
        # Zeros at the low end are the background of an image, no clipping.
        at_low = (seen.sample == seen.low) & (seen.low < 0)
        edge = float((at_low | (seen.sample == seen.high)).mean())
        if edge > 0.2:
            found.append(
                f"calibration input '{name}' saturates: {edge:.0%} of its values sit at its limits, "
                "check the preprocessing"
            )
    return found
