"""What calibration says of every layer of the dense model, in the terms of the groups it reads."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from sparsecc.axes.algebra import Atom, Axis, atoms_of
from sparsecc.axes.owners import owners_of
from sparsecc.calibrate.moments import Moments, together
from sparsecc.calibrate.routers import Router, Watch, mixtures_of
from sparsecc.calibrate.routers import facts_of as router_facts
from sparsecc.calibrate.statistics_cache import Shelf, digest_of
from sparsecc.data.samples import Samples
from sparsecc.graph.analysis import Analysis
from sparsecc.graph.linear_layers import LinearLayer, own_layer_of
from sparsecc.runtime.segments import MEMORY, Walk

SAMPLES = 256
WIDEST = 12288
"""Columns of a covariance, at most: it is inverted, at the cube of this."""
_BYTES_PER_ENTRY = 32
"""What an entry of a covariance costs while it is summed or inverted."""


@dataclass(frozen=True)
class CovarianceBlock:
    """Columns of one group of a layer, and their covariance: (n, n), float32, mapped from disk."""

    group: int
    columns: slice
    covariance: np.ndarray


@dataclass(frozen=True)
class LayerStatistics:
    """A consumer of the dense model, the axis of the channels it reads, and its moments on disk.

    `mean` and `variance` are (groups, columns). Where a covariance would be too large, only its blocks of
    `width` columns on the diagonal are known.
    """

    consumer: LinearLayer
    axis: Axis
    mean: np.ndarray
    variance: np.ndarray
    file: Path
    width: int

    def blocks(self) -> Iterator[CovarianceBlock]:
        """The covariance, block by block; one block per group unless the layer is very wide."""
        entries, start = np.load(self.file, mmap_mode="r"), 0
        for group in range(len(self.mean)):
            for columns in column_blocks(self.mean.shape[1], self.width):
                n = columns.stop - columns.start
                yield CovarianceBlock(group, columns, entries[start : start + n * n].reshape(n, n))
                start += n * n

    def owners(self, atom: Atom) -> np.ndarray:
        """For each column of each group, the slot of the atom it belongs to, or -1: (groups, columns)."""
        channels = owners_of(self.axis, atom)
        return np.repeat(channels, self.consumer.cells).reshape(self.mean.shape)

    @property
    def mixes(self) -> bool:
        """Whether an output sums over more than one channel (a depthwise convolution does not)."""
        return bool(self.mean.shape[1] > self.consumer.cells)


class Stats:
    """The layers by the atoms they read, and the routers of mixtures; `digest` names all that went into them,
    `facts` are for the report.
    """

    def __init__(
        self,
        layers: list[LayerStatistics],
        digest: str,
        facts: dict[str, Any],
        shelf: Shelf,
        routers: Sequence[Router] = (),
    ) -> None:
        self.layers = {layer.consumer.name: layer for layer in layers}
        self.routers = routers
        self.shelf = shelf
        self.digest = digest
        self.facts = facts
        self._by_atom: dict[Atom, list[LayerStatistics]] = {}
        for layer in layers:
            for atom in atoms_of(layer.axis):
                self._by_atom.setdefault(atom, []).append(layer)

    def of(self, atom: Atom) -> Iterator[LayerStatistics]:
        """The layers that sum over slots of the atom."""
        yield from (layer for layer in self._by_atom.get(atom, ()) if layer.mixes)


def column_blocks(columns: int, width: int) -> list[slice]:
    """Columns cut into blocks of `width`, the last maybe smaller."""
    return [slice(start, min(start + width, columns)) for start in range(0, columns, width)]


def collect(
    analysis: Analysis,
    samples: Samples,
    scratch: Path,
    *,
    seed: int = 0,
    threads: int = 1,
    memory: int = MEMORY,
    progress: Callable[[str, float], None] = lambda what, share: None,
) -> Stats:
    """The moments of every layer's inputs, from one walk of the dense model over the samples.

    They wait on disk, one file per layer, and are kept for the next compile of the same model on the same
    samples. At most about `memory` bytes are held at once: half for values between layers, half for the sums
    of one layer.
    """
    begun = time.perf_counter()
    few, shelf = samples.first(SAMPLES), Shelf(scratch)
    digest = digest_of(analysis.model, few, __name__, seed, threads, memory)
    found = _known(analysis, shelf, digest)
    source = "samples" if found is None else "cache"
    if found is None:
        half, watch = memory // 2, Watch(analysis)
        walk = Walk(analysis.model, few.batches, scratch, wanted=watch.names, threads=threads, memory=half)
        found = _walked(analysis, walk, watch, shelf, digest, seed, half, progress), watch.routers
        _keep_index(*found, shelf, digest)
    layers, routers = found
    facts = {**_facts(layers, few, source, shelf), "seconds": round(time.perf_counter() - begun, 3)}
    if routers:
        facts["routers"] = router_facts(routers)
    return Stats(layers, digest, facts, shelf, routers)


def _walked(
    analysis: Analysis,
    walk: Walk,
    watch: Watch,
    shelf: Shelf,
    digest: str,
    seed: int,
    memory: int,
    progress: Callable[[str, float], None],
) -> list[LayerStatistics]:
    layers: list[LayerStatistics] = []
    seen: dict[tuple[object, ...], LayerStatistics] = {}
    for number, node in enumerate(walk.nodes):
        watch.look(walk, number)
        found = _reader(analysis, node)
        if found is None:
            continue
        consumer, axis = found
        twin = seen.get(consumer.reads)
        if twin is not None:
            layers.append(replace(twin, consumer=consumer, axis=axis))
            continue
        progress("statistics of layers", number / len(walk.nodes))
        walk.advance(number)
        if not walk.has(consumer.source):
            continue
        entry = f"{digest}-{number}"
        layers.append(_measured(walk, consumer, axis, shelf.path(entry), seed, memory))
        shelf.keep(entry)
        seen[consumer.reads] = layers[-1]
    return layers


def _reader(analysis: Analysis, node: ir.Node) -> tuple[LinearLayer, Axis] | None:
    """A node as a consumer with the axis of the channels it reads."""
    consumer = own_layer_of(node)
    data = node.inputs[0] if node.inputs else None
    if not isinstance(consumer, LinearLayer) or data not in analysis.record.axes:
        return None
    return consumer, analysis.record.axes[data][1 if consumer.is_conv else -1]


def _measured(
    walk: Walk, consumer: LinearLayer, axis: Axis, file: Path, seed: int, memory: int
) -> LayerStatistics:
    """The moments of one layer's inputs; a covariance too large for the memory block by block, a pass each."""
    groups, _, columns = consumer.sizes
    width = widest_block(groups, columns, consumer.cells, memory)
    blocks = column_blocks(columns, width)
    mean, variance = np.zeros((groups, columns)), np.zeros((groups, columns))
    entries: list[list[np.ndarray]] = [[] for _ in range(groups)]
    for block in blocks:
        moments = _moments(walk, consumer, seed, block)
        mean[:, block] = moments.mean
        covariance = moments.into_covariance()
        variance[:, block] = np.maximum(np.einsum("gkk->gk", covariance), 0.0)
        for group in range(groups):
            entries[group].append(covariance[group].astype(np.float32).ravel())
    parts = [part for group in entries for part in group]
    with file.open("wb") as opened:
        about = {"descr": "<f4", "fortran_order": False, "shape": (sum(part.size for part in parts),)}
        np.lib.format.write_array_header_1_0(opened, about)
        for part in parts:
            part.tofile(opened)
    return LayerStatistics(consumer, axis, mean, variance, file, width)


def widest_block(groups: int, columns: int, cells: int, memory: int) -> int:
    """How many columns, whole channels, a block of the covariance may have; at least one channel."""
    fits = min(WIDEST, int((memory / (_BYTES_PER_ENTRY * groups)) ** 0.5))
    return columns if columns <= fits else max(cells, fits // cells * cells)


def _moments(walk: Walk, consumer: LinearLayer, seed: int, block: slice) -> Moments:
    moments = Moments.empty(consumer.group, block.stop - block.start)
    for (rows,) in together(_rows(walk, consumer, seed, block), (1,)):
        moments.add(rows)
    return moments


def _rows(walk: Walk, consumer: LinearLayer, seed: int, block: slice) -> Iterator[tuple[np.ndarray]]:
    for batch in range(walk.batches):
        data = walk.value(consumer.source, batch)
        picks = consumer.picks(data, batch, walk.batches, seed)
        yield (consumer.rows(data, picks)[:, :, block],)


def _known(
    analysis: Analysis, shelf: Shelf, digest: str
) -> tuple[list[LayerStatistics], list[Router]] | None:
    """Layers and routers as an earlier trial or compile left them; None where something is missing."""
    index = shelf.find(f"{digest}-index")
    if index is None:
        return None
    nodes = {node.name: node for node in analysis.model.graph}
    layers = []
    with np.load(index, allow_pickle=False) as found:
        for number, name in enumerate(found["names"]):
            reader = _reader(analysis, nodes[str(name)])
            file = shelf.find(str(found["files"][number]))
            if reader is None or file is None:
                return None
            mean, variance = found[f"mean{number}"], found[f"variance{number}"]
            layers.append(LayerStatistics(*reader, mean, variance, file, int(found["widths"][number])))
        routers = [
            Router.of(mixture, lambda name, i=i: found[f"router{i}.{name}"])  # type: ignore[misc]
            for i, mixture in enumerate(mixtures_of(analysis))
        ]
    return layers, routers


def _keep_index(layers: list[LayerStatistics], routers: list[Router], shelf: Shelf, digest: str) -> None:
    """Written last, so that who finds it finds the rest."""
    arrays = {f"mean{number}": layer.mean for number, layer in enumerate(layers)}
    arrays |= {f"variance{number}": layer.variance for number, layer in enumerate(layers)}
    for number, router in enumerate(routers):
        arrays |= {f"router{number}.{name}": array for name, array in router.arrays().items()}
    arrays["names"] = np.array([layer.consumer.name for layer in layers], dtype=np.str_)
    arrays["files"] = np.array([layer.file.name for layer in layers], dtype=np.str_)
    arrays["widths"] = np.array([layer.width for layer in layers], dtype=np.int64)
    with shelf.path(f"{digest}-index").open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
    shelf.keep(f"{digest}-index")


def _facts(layers: list[LayerStatistics], samples: Samples, source: str, shelf: Shelf) -> dict[str, Any]:
    """For the report. RUN_FACTS differ from run to run."""
    files = {layer.file: layer.file.stat().st_size for layer in layers}
    wide = sorted(y.consumer.name for y in layers if y.width < y.mean.shape[1])
    facts: dict[str, Any] = {"samples": samples.number, "layers": len(layers), "bytes": sum(files.values())}
    if wide:
        facts["block_diagonal"] = wide
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    found = {"source": source, "peak_bytes": peak}
    return facts | found | ({"cache_refused": shelf.refusal} if shelf.refusal else {})


RUN_FACTS = frozenset({"seconds", "source", "peak_bytes", "cache_refused"})
"""What a report leaves out when it must be the same bytes every time."""
