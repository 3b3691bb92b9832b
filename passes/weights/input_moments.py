"""X^T X of what a layer multiplies, over the calibration set: for every method that minimises output error."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from sparsecc.calibrate.layer_statistics import column_blocks, widest_block
from sparsecc.calibrate.moments import Moments, together
from sparsecc.compilation import Compilation
from sparsecc.errors import InputError
from sparsecc.graph.linear_layers import LinearLayer
from sparsecc.runtime.segments import Walk

MULTIPLE = 128
"""Columns of a covariance are split in multiples of this: whole scales and whole groups of every pattern."""


@dataclass(frozen=True)
class GramBlock:
    """Some columns of the rows that a layer multiplies, and `gram` (group, n, n), the sum of x x^T over them."""

    columns: slice
    gram: np.ndarray


@dataclass(frozen=True)
class InputMoments:
    """What calibration says of the rows x that a layer multiplies; columns are in the order of `LinearLayer.matrix`.

    `mean` and `root_mean_square` are (group, k). `blocks` is one of all columns, or, where X^T X does not fit
    the memory, those on its diagonal, mapped from disk.
    """

    mean: np.ndarray
    root_mean_square: np.ndarray
    blocks: tuple[GramBlock, ...]

    @property
    def is_whole(self) -> bool:
        """Whether the moments of all pairs of columns are known."""
        return len(self.blocks) == 1


@dataclass(frozen=True)
class Inputs:
    """What `layers` multiply: all of them the same rows. To be asked while the walk stands at them."""

    layers: list[LinearLayer]
    walk: Walk
    folder: Path
    memory: int
    seed: int

    def mean(self) -> np.ndarray:
        """(group, k)."""
        total, number = 0.0, 0
        for rows in self._rows():
            total = total + rows.sum(axis=1, dtype=np.float64)
            number += rows.shape[1]
        return np.asarray(total / max(1, number))

    def moments(self, multiple: int = MULTIPLE) -> InputMoments:
        """One pass over the samples where X^T X fits the memory, else one for each of its diagonal blocks, which
        are multiples of `multiple` columns wide."""
        groups, _, columns = self.layers[0].sizes
        parts = column_blocks(columns, widest_block(groups, columns, multiple, self.memory))
        mean, size, blocks = np.zeros((groups, columns)), np.zeros((groups, columns)), []
        for part in parts:
            sums = Moments.empty(groups, part.stop - part.start)
            for (rows,) in together(((rows[:, :, part],) for rows in self._rows()), (1,)):
                sums.add(rows)
            mean[:, part] = sums.mean
            diagonal = np.einsum("gkk->gk", sums.xx)
            size[:, part] = np.sqrt(np.maximum(diagonal, 0) / max(1, sums.rows))
            blocks.append(GramBlock(part, sums.xx if len(parts) == 1 else self._stored(part, sums.xx)))
        return InputMoments(mean, size, tuple(blocks))

    def places(self) -> int:
        """How many rows the first set of samples has."""
        layer = self.layers[0]
        return math.prod(layer.places(self.walk.value(layer.source, 0)))

    def _rows(self) -> Iterator[np.ndarray]:
        """(group, n, k) of every batch. InputError on NaN or infinity."""
        layer = self.layers[0]
        for batch in range(self.walk.batches):
            data = self.walk.value(layer.source, batch)
            rows = layer.rows(data, layer.picks(data, batch, self.walk.batches, self.seed))
            if not np.isfinite(rows).all():
                raise InputError(
                    f"calibration: value '{layer.source}' holds NaN or infinity: check the calibration data "
                    "and the model"
                )
            groups, number, columns = rows.shape
            cells = rows.reshape(groups, number, columns // layer.cells, layer.cells)
            yield cells.swapaxes(2, 3).reshape(rows.shape)

    def _stored(self, part: slice, gram: np.ndarray) -> np.ndarray:
        file = self.folder / f"{part.start}.npy"
        file.unlink(missing_ok=True)
        np.save(file, gram)
        return np.asarray(np.load(file, mmap_mode="r"))


def walk_inputs(model: ir.Model, layers: Iterable[LinearLayer], compilation: Compilation) -> Iterator[Inputs]:
    """What the layers multiply, those with the same rows together, in the order of the graph.

    The model is walked once; at most about `--calib-memory` bytes are held, half for values between layers, which
    wait on disk beyond that, half for the sums of one layer. Weights that the caller changes in place are seen
    by the layers behind them.
    """
    alike: dict[tuple[object, ...], list[LinearLayer]] = {}
    for layer in layers:
        alike.setdefault(layer.reads, []).append(layer)
    if not alike:
        return
    model.graph.sort()
    half = compilation.options.working_memory // 2
    with tempfile.TemporaryDirectory(dir=compilation.scratch.folder) as name:
        folder = Path(name)
        walk = Walk(model, [dict(feeds) for feeds in compilation.pass_feeds], folder, memory=half)
        place = {
            readers[0].name: min(walk.place[layer.node] for layer in readers) for readers in alike.values()
        }
        ordered = sorted(alike.values(), key=lambda readers: place[readers[0].name])
        for number, readers in enumerate(ordered):
            walk.advance(place[readers[0].name])
            yield Inputs(readers, walk, folder, half, compilation.options.seed)
            compilation.progress("calibrating", (number + 1) / len(ordered))


def damped(gram: np.ndarray, share: float = 0.01) -> np.ndarray:
    """A gram matrix made safely invertible: `share` of its mean diagonal added, dead inputs set to one."""
    result = gram.astype(np.float64, copy=True)
    diagonal = np.einsum("kk->k", result)
    mean = float(diagonal.mean()) if diagonal.size else 0.0
    diagonal[diagonal <= 0] = mean or 1.0
    diagonal += share * (mean or 1.0)
    return result


def output_error(change: np.ndarray, weight: np.ndarray, gram: np.ndarray) -> float:
    """Relative output error of a changed weight: tr(D H D^T) / tr(W H W^T), for matrices (out, k)."""
    noise = float(np.einsum("ok,ok->", change @ gram, change))
    power = float(np.einsum("ok,ok->", weight @ gram, weight))
    return max(noise, 0.0) / power if power > 0 else 0.0
