"""What the channels that each layer reads are like, from their values on the samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

from sparsecc.calibrate.layer_statistics import SAMPLES
from sparsecc.data.samples import Samples
from sparsecc.graph.analysis import Analysis
from sparsecc.graph.linear_layers import LinearLayer, own_layer_of
from sparsecc.runtime.segments import Walk

Measure = Callable[[Iterator[np.ndarray]], np.ndarray]
"""Batches of a layer's input, each (samples, channels, positions...), -> one number per channel: (channels,)."""


class Channels:
    """A measure of every channel that a layer reads; found, in one walk, when it is first asked for."""

    def __init__(
        self, analysis: Analysis, samples: Samples, scratch: Path, *, threads: int, memory: int
    ) -> None:
        self._analysis, self._samples, self._scratch = analysis, samples.first(SAMPLES), scratch
        self._threads, self._memory = threads, memory
        self._known: dict[Measure, dict[str, np.ndarray]] = {}

    def of(self, measure: Measure) -> Mapping[str, np.ndarray]:
        """Name of the layer -> (channels,)."""
        if measure not in self._known:
            batches = self._samples.batches
            walk = Walk(
                self._analysis.model, batches, self._scratch, threads=self._threads, memory=self._memory
            )
            found: dict[str, np.ndarray] = {}
            for number, node in enumerate(walk.nodes):
                consumer = own_layer_of(node)
                if isinstance(consumer, LinearLayer):
                    walk.advance(number)
                    if walk.has(consumer.source):
                        found[consumer.name] = measure(_inputs(walk, consumer))
            self._known[measure] = found
        return self._known[measure]


def _inputs(walk: Walk, consumer: LinearLayer) -> Iterator[np.ndarray]:
    for batch in range(walk.batches):
        data = walk.value(consumer.source, batch)
        yield np.moveaxis(data, 1 if consumer.is_conv else data.ndim - 1, min(1, data.ndim - 1))
