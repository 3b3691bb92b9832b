"""The refit of layers too large for the memory: output by output, column by column, pass after pass.

Outputs do not depend on each other, so they are refitted in chunks. Columns do: blocks of them are refitted in
turn, each to what the others leave over, so that no step makes the layer worse. What the dense layer gives is
computed from its inputs, chunk by chunk, so that nobody holds the output of a language model's head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from sparsecc.calibrate.layer_statistics import column_blocks
from sparsecc.calibrate.moments import together
from sparsecc.reconstruct import solve
from sparsecc.reconstruct.damping import Halves, damping_for

Rows = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Of a batch: rows (rows, columns) of the pruned layer, those of the dense one, which are of an odd sample."""

_ENTRIES = 6
"""Matrices of the size of a chunk that are held at once, float64."""


def needs_parts(outputs: int, columns: int, rows: int, memory: int) -> bool:
    """Whether one refit of all outputs and columns, with so many rows a batch, would hold more than `memory`."""
    return _bytes(outputs, columns, rows) > memory or columns > _widest(memory)


def _bytes(outputs: int, columns: int, rows: int) -> int:
    return 8 * (7 * columns * columns + _ENTRIES * outputs * columns + 2 * rows * outputs)


def _widest(memory: int) -> int:
    """Columns of a block whose covariance takes half of the memory."""
    return max(1, int((memory / (8 * 8)) ** 0.5))


@dataclass(frozen=True)
class LayerPair:
    """A layer as matrices: `present` weight and bias, `wanted` those of the dense layer; (outputs, columns)."""

    present: Callable[[slice], np.ndarray]
    wanted: Callable[[slice], np.ndarray]
    wanted_bias: np.ndarray
    batches: Callable[[], Iterator[Rows]]
    outputs: int
    columns: int


@dataclass
class Refitted:
    """The new weight, float32 (outputs, columns), its bias, and noise and signal before and after.

    `damping` is the largest of its blocks.
    """

    weight: np.ndarray
    bias: np.ndarray
    before: float = 0.0
    after: float = 0.0
    signal: float = 0.0
    damping: float = 0.0

    def error(self, noise: float) -> float:
        """Relative to the variance of what is wanted."""
        return noise / self.signal if self.signal > 0 else 0.0


def refit_in_parts(layer: LayerPair, bias: np.ndarray | None, *, rows: int, memory: int) -> Refitted:
    """As `solve.refit`, then `solve.rescaled` and `solve.bias_for`. `bias` is the present one, or None where
    there can be none; variances are restored with one only. `rows` are those of a batch. The first chunk of
    outputs tells how much the refit of a block is damped.
    """
    found = Refitted(np.empty((layer.outputs, layer.columns), np.float32), np.zeros(layer.outputs))
    blocks, dampings = column_blocks(layer.columns, _widest(memory)), dict[int, float]()
    room = memory // 2 // 8 // (_ENTRIES * (blocks[0].stop + layer.columns) // 2 + 2 * rows)
    for chunk in column_blocks(layer.outputs, max(1, room)):
        weight = layer.present(chunk)
        own = np.zeros(chunk.stop - chunk.start) if bias is None else bias[chunk]
        sums = _sums(layer, chunk, weight)
        found.before += sums.noise(np.ones(len(own)), own)
        for block in blocks:
            residual = _residual(layer, chunk, block, weight)
            nothing, intercept = np.zeros((1, *weight[:, block].shape)), bias is not None
            if block.start not in dampings:
                dampings[block.start] = damping_for(nothing, residual, intercept=intercept)
            damping = dampings[block.start]
            weight[:, block] += solve.refit(nothing, residual.whole(), intercept=intercept, damping=damping)[
                0
            ]
        sums = _sums(layer, chunk, weight)
        scale = sums.scale() if bias is not None else np.ones(len(own))
        offset = sums.offset(scale) if bias is not None else own
        found.after += sums.noise(scale, offset)
        found.signal += float(sums.wanted_variance.sum())
        found.weight[chunk] = weight * scale[:, None]
        found.bias[chunk] = offset
    found.damping = max(dampings.values())
    return found


def _residual(layer: LayerPair, chunk: slice, block: slice, weight: np.ndarray) -> Halves:
    """Moments of a block's inputs with what all columns together still miss."""
    halves = Halves.empty(1, block.stop - block.start, len(weight))
    missed = (
        (data[None][:, :, block], (wanted - made)[None], odd)
        for data, made, wanted, odd in _passes(layer, chunk, weight)
    )
    for rows, targets, odd in together(missed, (1, 1, 0)):
        halves.add(rows, targets, odd)
    return halves


@dataclass
class _Sums:
    """Per output, sums over rows of what is made, what is wanted, and their products."""

    rows: int
    made: np.ndarray
    made2: np.ndarray
    wanted: np.ndarray
    wanted2: np.ndarray
    both: np.ndarray

    @property
    def wanted_variance(self) -> np.ndarray:
        return np.asarray(np.maximum(self.wanted2 / self.rows - np.square(self.wanted / self.rows), 0.0))

    def scale(self) -> np.ndarray:
        """What gives each output the variance that is wanted."""
        variance = np.maximum(self.made2 / self.rows - np.square(self.made / self.rows), 0.0)
        return solve.scale_to(variance, self.wanted_variance)

    def offset(self, scale: np.ndarray) -> np.ndarray:
        """The bias that gives each output its mean."""
        return np.asarray((self.wanted - scale * self.made) / self.rows)

    def noise(self, scale: np.ndarray, offset: np.ndarray) -> float:
        """Mean over rows, sum over outputs, of (scale * made + offset - wanted)²."""
        squares = np.square(scale) * self.made2 + self.rows * np.square(offset) + self.wanted2
        crossed = scale * offset * self.made - scale * self.both - offset * self.wanted
        return float(np.maximum(squares + 2 * crossed, 0.0).sum()) / self.rows


def _sums(layer: LayerPair, chunk: slice, weight: np.ndarray) -> _Sums:
    zeros = [np.zeros(len(weight)) for _ in range(5)]
    sums = _Sums(0, *zeros)
    for _, made, wanted, _ in _passes(layer, chunk, weight):
        sums.rows += len(made)
        sums.made += made.sum(axis=0, dtype=np.float64)
        sums.made2 += np.square(made, dtype=np.float64).sum(axis=0)
        sums.wanted += wanted.sum(axis=0, dtype=np.float64)
        sums.wanted2 += np.square(wanted, dtype=np.float64).sum(axis=0)
        sums.both += np.multiply(made, wanted, dtype=np.float64).sum(axis=0)
    return sums


def _passes(
    layer: LayerPair, chunk: slice, weight: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """Per batch: the rows, what `weight` makes of them, what the dense layer gives, which rows are of odd samples.

    There is no bias in what `weight` makes.
    """
    narrow, dense = weight.astype(np.float32), layer.wanted(chunk).astype(np.float32)
    for data, before, odd in layer.batches():
        yield data, data @ narrow.T, before @ dense.T + layer.wanted_bias[chunk].astype(np.float32), odd
