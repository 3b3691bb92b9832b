"""How weights become few bits: round to nearest, GPTQ (error feedback), AWQ-like input scaling."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sparsecc.calibrate import positive_definite
from sparsecc.passes.weights.input_moments import InputMoments, damped, output_error
from sparsecc.runtime.numerics import decibels

ELEMENTS = 1 << 20
"""Numbers of a matrix that are expanded to single precision at a time."""

AWQ_ROWS = 128
"""Output rows on which an input scale is judged."""


@dataclass(frozen=True)
class Blocks:
    """A matrix (out, k) in `bits` unsigned bits, blocks of `size` along k.

    levels (out, k) uint8; scale and zero (out, ceil(k / size)): real = (level - zero) * scale.
    """

    levels: np.ndarray
    scale: np.ndarray
    zero: np.ndarray
    size: int

    @staticmethod
    def joined(parts: Sequence[Blocks]) -> Blocks:
        """Matrices side by side, each of whole blocks but the last."""
        levels, scale, zero = (
            np.concatenate([getattr(part, name) for part in parts], axis=1)
            for name in ("levels", "scale", "zero")
        )
        return Blocks(levels, scale, zero, parts[0].size)

    def real(self) -> np.ndarray:
        """The float32 matrix that these numbers stand for."""
        columns = self.levels.shape[1]
        scale = np.repeat(self.scale, self.size, axis=1)[:, :columns]
        zero = np.repeat(self.zero, self.size, axis=1)[:, :columns]
        return np.asarray((self.levels.astype(np.float32) - zero) * scale, np.float32)


def block_scale(
    block: np.ndarray, bits: int, *, symmetric: bool, stored: npt.DTypeLike = np.float32
) -> tuple[np.ndarray, np.ndarray]:
    """(scale, zero), each (...) float32, of blocks (..., size). Zero is always one of the levels.

    `stored` is the type that the scale will be kept in: it is rounded to that first.
    """
    top = 2**bits - 1
    if symmetric:
        middle = 2 ** (bits - 1)
        scale = _storable(np.abs(block).max(axis=-1) / (middle - 1), stored)
        return scale, np.full(scale.shape, middle, np.float32)
    low, high = np.minimum(block.min(axis=-1), 0), np.maximum(block.max(axis=-1), 0)
    scale = _storable((high - low) / top, stored)
    return scale, np.clip(np.rint(-low / scale), 0, top).astype(np.float32)


def _storable(scale: np.ndarray, stored: npt.DTypeLike) -> np.ndarray:
    """Blocks of zeros, and of numbers too small for the type, get the scale 1."""
    rounded = scale.astype(stored).astype(np.float32)
    return np.where(rounded > 0, rounded, np.float32(1.0))


def round_to_nearest(
    matrix: np.ndarray,
    size: int,
    bits: int = 4,
    *,
    symmetric: bool = False,
    stored: npt.DTypeLike = np.float32,
) -> Blocks:
    """Each number of a matrix (out, k) of any float type to its nearest level, some rows at a time."""
    rows, columns = matrix.shape
    count = -(-columns // size)
    levels = np.empty((rows, columns), np.uint8)
    scales, zeros = np.empty((rows, count), np.float32), np.empty((rows, count), np.float32)
    for part, work in _in_blocks(matrix, size):
        scale, zero = block_scale(work, bits, symmetric=symmetric, stored=stored)
        scales[part], zeros[part] = scale, zero
        work /= scale[:, :, None]
        np.rint(work, out=work)
        work += zero[:, :, None]
        np.clip(work, 0, 2**bits - 1, out=work)
        levels[part] = work.reshape(len(work), -1)[:, :columns]
    return Blocks(levels, scales, zeros, size)


SHRINKS = tuple(0.70 + 0.03 * step for step in range(13))
"""Of the scale that covers a block, the shares that are tried by `round_by_search`."""


def round_by_search(
    matrix: np.ndarray,
    size: int,
    bits: int = 4,
    *,
    symmetric: bool = False,
    stored: npt.DTypeLike = np.float32,
) -> Blocks:
    """Each block with the scale, of some around the one that covers it, that loses least; large numbers count more.

    Scales are fitted to the levels by least squares, numbers weighted by their size plus the root mean square of
    their block, as in the k-quants of llama.cpp (`make_qkx2_quants`). Needs no data.
    """
    columns, top = matrix.shape[1], 2**bits - 1
    best = round_to_nearest(matrix, size, bits, symmetric=symmetric, stored=stored)
    for part, work in _in_blocks(matrix, size):
        weight = np.abs(work) + np.sqrt(np.square(work).mean(axis=2, keepdims=True))
        cover, _ = block_scale(work, bits, symmetric=symmetric)
        low = np.minimum(work.min(axis=2), 0)
        least = np.full(cover.shape, np.inf, np.float32)
        found = np.zeros(work.shape, np.float32)
        for shrink in SHRINKS:
            scale = cover * np.float32(shrink)
            zero = np.full(scale.shape, 2 ** (bits - 1), np.float32) if symmetric else np.rint(-low / scale)
            zero = np.clip(zero, 0, top)
            levels = np.clip(np.rint(work / scale[:, :, None]) + zero[:, :, None], 0, top)
            steps = levels - zero[:, :, None]
            square = (weight * np.square(steps)).sum(axis=2)
            fitted = (weight * steps * work).sum(axis=2) / np.where(square > 0, square, 1)
            scale = _storable(np.where(fitted > 0, fitted, scale), stored)
            error = (weight * np.square(work - steps * scale[:, :, None])).sum(axis=2)
            is_better = error < least
            least = np.where(is_better, error, least)
            found = np.where(is_better[:, :, None], levels, found)
            best.scale[part] = np.where(is_better, scale, best.scale[part])
            best.zero[part] = np.where(is_better, zero, best.zero[part])
        best.levels[part] = found.reshape(len(found), -1)[:, :columns].astype(np.uint8)
    return best


def _in_blocks(matrix: np.ndarray, size: int) -> Iterator[tuple[slice, np.ndarray]]:
    """Some rows at a time: which they are, and their numbers as (rows, blocks, size), zeros behind the last."""
    columns = matrix.shape[1]
    count = -(-columns // size)
    for part in row_blocks(matrix):
        work = np.zeros((len(matrix[part]), count * size), np.float32)
        work[:, :columns] = matrix[part]
        yield part, work.reshape(len(work), count, size)


def row_blocks(matrix: np.ndarray) -> Iterator[slice]:
    """Rows of about `ELEMENTS` numbers at a time."""
    step = max(1, ELEMENTS // max(1, matrix.shape[1]))
    for start in range(0, len(matrix), step):
        yield slice(start, start + step)


def noise_db(matrix: np.ndarray, blocks: Blocks) -> float:
    """Signal to noise of the rounded matrix in dB, some rows at a time."""
    noise = power = 0.0
    for part in row_blocks(matrix):
        exact = matrix[part].astype(np.float64)
        rough = Blocks(blocks.levels[part], blocks.scale[part], blocks.zero[part], blocks.size).real()
        power += float(np.square(exact).sum())
        noise += float(np.square(exact - rough).sum())
    return decibels(power, noise)


def gptq(
    matrix: np.ndarray, gram: np.ndarray, size: int, bits: int = 4, *, symmetric: bool = False
) -> Blocks:
    """Column by column, the error of each pushed into those still to come (Frantar et al., 2022).

    matrix (out, k); gram (k, k) is X^T X of its inputs.
    """
    upper = positive_definite.upper_root_of_inverse(damped(gram))
    return _with_feedback(matrix.astype(np.float64), size, bits, symmetric, upper)


def _with_feedback(work: np.ndarray, size: int, bits: int, symmetric: bool, feedback: np.ndarray) -> Blocks:
    """`work` is used up."""
    rows, columns = work.shape
    count = -(-columns // size)
    levels = np.zeros((rows, columns), np.uint8)
    scales, zeros = np.ones((rows, count), np.float32), np.zeros((rows, count), np.float32)
    for block in range(count):
        start, end = block * size, min(columns, (block + 1) * size)
        scale, zero = block_scale(work[:, start:end], bits, symmetric=symmetric)
        scales[:, block], zeros[:, block] = scale, zero
        errors = np.zeros((rows, end - start))
        for column in range(start, end):
            level = np.clip(np.rint(work[:, column] / scale) + zero, 0, 2**bits - 1)
            levels[:, column] = level
            error = (work[:, column] - (level - zero) * scale) / feedback[column, column]
            work[:, column:end] -= np.outer(error, feedback[column, column:end])
            errors[:, column - start] = error
        work[:, end:] -= errors @ feedback[start:end, end:]
    return Blocks(levels, scales, zeros, size)


def awq_scale(matrices: list[np.ndarray], seen: InputMoments, size: int, *, symmetric: bool) -> np.ndarray:
    """(k,) input scales s = magnitude^a, a in 0 to 1, that lose least when W*s is rounded and x/s multiplied.

    All `matrices` (out, k) read the same input; ones when no scaling helps (Lin et al., 2023).
    """
    matrices = [w[:: max(1, len(w) // AWQ_ROWS)].astype(np.float32) for w in matrices]
    magnitude = seen.root_mean_square[0]
    grams = [(block.columns, block.gram[0].astype(np.float32)) for block in seen.blocks]
    best, best_scale = np.inf, np.ones(len(magnitude), np.float32)
    for alpha in np.linspace(0, 1, 11):
        scale = (np.maximum(magnitude, 1e-6) ** alpha).astype(np.float32)
        scale = scale / np.sqrt(scale.max() * scale.min())
        changes = [
            round_to_nearest(w * scale, size, symmetric=symmetric).real() / scale - w for w in matrices
        ]
        error = sum(
            output_error(change[:, part], w[:, part], gram)
            for change, w in zip(changes, matrices, strict=True)
            for part, gram in grams
        )
        if error < best * (1 - 1e-3):
            best, best_scale = error, scale
    return np.asarray(best_scale)
