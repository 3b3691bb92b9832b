"""How weights become few bits: round to nearest, GPTQ (error feedback), AWQ-like input scaling."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import cholesky

from sparsecc.passes.quantize.gram import damped, output_error

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

    def real(self) -> np.ndarray:
        """The float32 matrix that these numbers stand for."""
        columns = self.levels.shape[1]
        scale = np.repeat(self.scale, self.size, axis=1)[:, :columns]
        zero = np.repeat(self.zero, self.size, axis=1)[:, :columns]
        return np.asarray((self.levels.astype(np.float32) - zero) * scale, np.float32)


def block_scale(block: np.ndarray, bits: int, *, symmetric: bool) -> tuple[np.ndarray, np.ndarray]:
    """(scale, zero), each (out,), of one block (out, size). Zero is always one of the levels."""
    top = 2**bits - 1
    if symmetric:
        middle = 2 ** (bits - 1)
        scale = np.abs(block).max(axis=1) / (middle - 1)
        return np.where(scale > 0, scale, 1.0).astype(np.float32), np.full(len(block), middle, np.float32)
    low, high = np.minimum(block.min(axis=1), 0), np.maximum(block.max(axis=1), 0)
    scale = (high - low) / top
    scale = np.where(scale > 0, scale, 1.0).astype(np.float32)
    return scale, np.clip(np.rint(-low / scale), 0, top).astype(np.float32)


def round_to_nearest(matrix: np.ndarray, size: int, bits: int = 4, *, symmetric: bool = False) -> Blocks:
    """Each number to its nearest level."""
    return _blocked(matrix, size, bits, symmetric, feedback=None)


def gptq(
    matrix: np.ndarray, gram: np.ndarray, size: int, bits: int = 4, *, symmetric: bool = False
) -> Blocks:
    """Column by column, the error of each pushed into those still to come (Frantar et al., 2022).

    matrix (out, k); gram (k, k) is X^T X of its inputs.
    """
    inverse = np.linalg.inv(damped(gram))
    upper = cholesky((inverse + inverse.T) / 2, lower=False)
    return _blocked(matrix.astype(np.float64), size, bits, symmetric, feedback=upper)


def _blocked(work: np.ndarray, size: int, bits: int, symmetric: bool, feedback: np.ndarray | None) -> Blocks:
    work = work.copy()
    rows, columns = work.shape
    count = -(-columns // size)
    levels = np.zeros((rows, columns), np.uint8)
    scales, zeros = np.ones((rows, count), np.float32), np.zeros((rows, count), np.float32)
    for block in range(count):
        start, end = block * size, min(columns, (block + 1) * size)
        scale, zero = block_scale(work[:, start:end], bits, symmetric=symmetric)
        scales[:, block], zeros[:, block] = scale, zero
        if feedback is None:
            whole = np.rint(work[:, start:end] / scale[:, None]) + zero[:, None]
            levels[:, start:end] = np.clip(whole, 0, 2**bits - 1)
            continue
        errors = np.zeros((rows, end - start))
        for column in range(start, end):
            level = np.clip(np.rint(work[:, column] / scale) + zero, 0, 2**bits - 1)
            levels[:, column] = level
            error = (work[:, column] - (level - zero) * scale) / feedback[column, column]
            work[:, column:end] -= np.outer(error, feedback[column, column:end])
            errors[:, column - start] = error
        work[:, end:] -= errors @ feedback[start:end, end:]
    return Blocks(levels, scales, zeros, size)


def awq_scale(
    matrices: list[np.ndarray], gram: np.ndarray, magnitude: np.ndarray, size: int, *, symmetric: bool
) -> np.ndarray:
    """(k,) input scales s = magnitude^a, a in 0 to 1, that lose least when W*s is rounded and x/s multiplied.

    All `matrices` (out, k) read the same input; ones when no scaling helps (Lin et al., 2023).
    """
    matrices = [w[:: max(1, len(w) // AWQ_ROWS)].astype(np.float32) for w in matrices]
    gram = gram.astype(np.float32)
    best, best_scale = np.inf, np.ones(len(magnitude), np.float32)
    for alpha in np.linspace(0, 1, 11):
        scale = (np.maximum(magnitude, 1e-6) ** alpha).astype(np.float32)
        scale = scale / np.sqrt(scale.max() * scale.min())
        error = sum(
            output_error(round_to_nearest(w * scale, size, symmetric=symmetric).real() / scale - w, w, gram)
            for w in matrices
        )
        if error < best * (1 - 1e-3):
            best, best_scale = error, scale
    return np.asarray(best_scale)
