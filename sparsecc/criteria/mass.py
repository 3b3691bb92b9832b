"""Which channels hold most of a layer's activation, sample by sample.

"Fire Together Wire Together" (Elkerdawy et al., 2022) trains a predictor per layer to switch off, sample by
sample, all filters but those whose peaks hold a share of the mass. Kept for good are those switched on most often.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from sparsecc.criteria.activation import by_channel
from sparsecc.criteria.evidence import Evidence
from sparsecc.graph.groups import Group

MASS = 0.9
"""Between the 0.8 and 0.97 that the paper takes."""


def act_mass(group: Group, evidence: Evidence) -> np.ndarray:
    """The share of samples in which a slot is one of the fewest channels that hold MASS of what a layer reads."""
    return by_channel(group, evidence, often)


def often(batches: Iterator[np.ndarray]) -> np.ndarray:
    """How often a channel is among the holders; of those on equally often, a larger share of the mass counts."""
    peaks = np.concatenate([_peaks(data) for data in batches])
    totals = np.maximum(peaks.sum(axis=1, keepdims=True), 1e-30)
    shares = (peaks / totals).mean(axis=0)
    return np.asarray(holders(peaks).mean(axis=0) + shares / (len(peaks) + 1))


def holders(peaks: np.ndarray, mass: float = MASS) -> np.ndarray:
    """For every sample, the fewest channels whose peaks sum to `mass` of all: (samples, channels), both."""
    order = np.argsort(-peaks, axis=1, kind="stable")
    falling = np.take_along_axis(peaks, order, axis=1)
    before = np.cumsum(falling, axis=1) - falling
    on = (before < mass * peaks.sum(axis=1, keepdims=True)) & (falling > 0)
    found = np.empty_like(on)
    np.put_along_axis(found, order, on, axis=1)
    return np.asarray(found)


def _peaks(data: np.ndarray) -> np.ndarray:
    """Largest magnitude over all positions: (samples, channels), float64."""
    others = tuple(range(2, data.ndim))
    return np.asarray(np.abs(data).max(axis=others) if others else np.abs(data), dtype=np.float64)
