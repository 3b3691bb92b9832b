"""Which channels hold most of a layer's activation, sample by sample.

"Fire Together Wire Together" (Elkerdawy et al., 2022) trains a predictor per layer to switch off, sample by
sample, all filters but those whose peaks hold a share of the mass. Kept for good are those switched on most often.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from sparsecc.calibrate.consumers import Consumer, consumer_of
from sparsecc.calibrate.samples import Samples
from sparsecc.calibrate.stats import SAMPLES, Layer
from sparsecc.calibrate.walk import Walk
from sparsecc.criteria.activation import summed
from sparsecc.criteria.evidence import Evidence
from sparsecc.graph.analysis import Analysis
from sparsecc.graph.groups import Group

MASS = 0.9
"""Between the 0.8 and 0.97 that the paper takes."""


def act_mass(group: Group, evidence: Evidence) -> np.ndarray:
    """The share of samples in which a slot is one of the fewest channels that hold MASS of what a layer reads."""
    assert evidence.masses is not None
    masses = evidence.masses()

    def often(layer: Layer) -> np.ndarray:
        channels = masses[layer.consumer.name]
        return np.asarray(np.repeat(channels, layer.consumer.cells).reshape(layer.mean.shape))

    return summed(group, evidence, often)


def holders(peaks: np.ndarray, mass: float = MASS) -> np.ndarray:
    """For every sample, the fewest channels whose peaks sum to `mass` of all: (samples, channels), both."""
    order = np.argsort(-peaks, axis=1, kind="stable")
    falling = np.take_along_axis(peaks, order, axis=1)
    before = np.cumsum(falling, axis=1) - falling
    on = (before < mass * peaks.sum(axis=1, keepdims=True)) & (falling > 0)
    found = np.empty_like(on)
    np.put_along_axis(found, order, on, axis=1)
    return np.asarray(found)


class Masses:
    """How often every channel that a layer reads is among the holders; found when it is first asked for."""

    def __init__(
        self, analysis: Analysis, samples: Samples, scratch: Path, *, threads: int, memory: int
    ) -> None:
        self._analysis, self._samples, self._scratch = analysis, samples.first(SAMPLES), scratch
        self._threads, self._memory = threads, memory
        self._known: dict[str, np.ndarray] = {}

    def of(self) -> Mapping[str, np.ndarray]:
        """Name of the layer -> (channels,). Among channels on equally often, a larger share of the mass counts."""
        if not self._known:
            batches, folder = self._samples.batches, self._scratch / "mass_walk"
            walk = Walk(self._analysis.model, batches, folder, threads=self._threads, memory=self._memory)
            for number, node in enumerate(walk.nodes):
                consumer = consumer_of(node)
                if isinstance(consumer, Consumer):
                    walk.advance(number)
                    if walk.has(consumer.data):
                        self._known[consumer.name] = _often(walk, consumer)
        return self._known


def _often(walk: Walk, consumer: Consumer) -> np.ndarray:
    peaks = np.concatenate([_peaks(walk.value(consumer.data, b), consumer) for b in range(walk.batches)])
    totals = np.maximum(peaks.sum(axis=1, keepdims=True), 1e-30)
    shares = (peaks / totals).mean(axis=0)
    return np.asarray(holders(peaks).mean(axis=0) + shares / (len(peaks) + 1))


def _peaks(data: np.ndarray, consumer: Consumer) -> np.ndarray:
    """Largest magnitude over all positions: (samples, channels), float64."""
    channels = 1 if consumer.is_conv else data.ndim - 1
    others = tuple(axis for axis in range(1, data.ndim) if axis != channels)
    return np.asarray(np.abs(data).max(axis=others) if others else np.abs(data), dtype=np.float64)
