"""What calibration says of every layer of the dense model, in the terms of the groups it reads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sparsecc.axes import Atom, Axis, atoms_of, owners_of
from sparsecc.calibrate.consumers import Consumer, consumer_of
from sparsecc.calibrate.moments import Moments
from sparsecc.calibrate.samples import Samples
from sparsecc.calibrate.walk import Walk
from sparsecc.graph.analysis import Analysis

SAMPLES = 256


@dataclass(frozen=True)
class Layer:
    """A consumer of the dense model, the axis of the channels it reads, and its moments on disk.

    `mean` and `variance` are (groups, columns).
    """

    consumer: Consumer
    axis: Axis
    mean: np.ndarray
    variance: np.ndarray
    file: Path

    def covariance(self) -> np.ndarray:
        """(groups, columns, columns), read from disk."""
        return np.asarray(np.load(self.file))

    def owners(self, atom: Atom) -> np.ndarray:
        """For each column of each group, the slot of the atom it belongs to, or -1: (groups, columns)."""
        channels = owners_of(self.axis, atom)
        return np.repeat(channels, self.consumer.cells).reshape(self.mean.shape)

    @property
    def mixes(self) -> bool:
        """Whether an output sums over more than one channel (a depthwise convolution does not)."""
        return bool(self.mean.shape[1] > self.consumer.cells)


class Stats:
    """The layers by the atoms they read."""

    def __init__(self, layers: list[Layer]) -> None:
        self.layers = {layer.consumer.name: layer for layer in layers}
        self._by_atom: dict[Atom, list[Layer]] = {}
        for layer in layers:
            for atom in atoms_of(layer.axis):
                self._by_atom.setdefault(atom, []).append(layer)

    def of(self, atom: Atom) -> Iterator[Layer]:
        """The layers that sum over slots of the atom."""
        yield from (layer for layer in self._by_atom.get(atom, ()) if layer.mixes)


def collect(analysis: Analysis, samples: Samples, scratch: Path, *, seed: int = 0, threads: int = 1) -> Stats:
    """One walk of the dense model over the samples. Covariances wait on disk, one file per layer."""
    few = samples.first(SAMPLES)
    folder = scratch / "moments"
    folder.mkdir(parents=True, exist_ok=True)
    walk = Walk(analysis.model, few.batches, scratch / "stats_walk", threads=threads)
    layers: list[Layer] = []
    seen: dict[tuple[object, ...], Layer] = {}
    for number, node in enumerate(walk.nodes):
        consumer = consumer_of(node)
        data = node.inputs[0] if node.inputs else None
        if not isinstance(consumer, Consumer) or data not in analysis.record.axes:
            continue
        axes = analysis.record.axes[data]
        axis = axes[1 if consumer.is_conv else -1]
        twin = seen.get(_geometry(consumer))
        if twin is not None:
            layers.append(Layer(consumer, axis, twin.mean, twin.variance, twin.file))
            continue
        walk.advance(number)
        if not walk.has(consumer.data):
            continue
        layers.append(_layer(consumer, axis, _moments(walk, consumer, seed), folder / f"{number}.npy"))
        seen[_geometry(consumer)] = layers[-1]
    return Stats(layers)


def _moments(walk: Walk, consumer: Consumer, seed: int) -> Moments:
    groups, _, columns = consumer.matrix().shape
    moments = Moments.empty(groups, columns)
    for batch in range(walk.batches):
        data = walk.value(consumer.data, batch)
        picks = consumer.picks(data, batch, walk.batches, seed)
        moments.add(consumer.rows(data, picks))
    return moments


def _layer(consumer: Consumer, axis: Axis, moments: Moments, file: Path) -> Layer:
    covariance = moments.covariance()
    np.save(file, covariance.astype(np.float32))
    variance = np.maximum(np.einsum("gkk->gk", covariance), 0.0)
    return Layer(consumer, axis, moments.mean, variance, file)


def _geometry(consumer: Consumer) -> tuple[object, ...]:
    """Layers with the same key see the same rows."""
    if not consumer.is_conv:
        return (consumer.data, "product")
    attributes = consumer.node.attributes
    lists = tuple(tuple(attributes.get_ints(n) or ()) for n in ("pads", "strides", "dilations"))
    mode = attributes.get_string("auto_pad", "NOTSET")
    return (consumer.data, consumer.groups, consumer.cells, mode, *lists)
