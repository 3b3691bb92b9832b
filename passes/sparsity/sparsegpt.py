"""SparseGPT: prune left to right; the weights still to come make up for it (Frantar & Alistarh, 2023)."""

from __future__ import annotations

import numpy as np

from sparsecc.calibrate import positive_definite
from sparsecc.passes.sparsity.pattern import Pattern
from sparsecc.passes.weights.input_moments import damped

BLOCK = 128


def sparsegpt(matrix: np.ndarray, gram: np.ndarray, pattern: Pattern) -> tuple[np.ndarray, np.ndarray]:
    """(new matrix, mask) of a matrix (out, k) whose inputs have the gram matrix (k, k)."""
    upper = positive_definite.upper_root_of_inverse(damped(gram))
    work = matrix.astype(np.float64)
    rows, columns = work.shape
    mask = np.ones((rows, columns), bool)
    step = BLOCK - BLOCK % (pattern.m or 1)
    for start in range(0, columns, step):
        end = min(columns, start + step)
        errors = np.zeros((rows, end - start))
        if not pattern.is_grouped:
            mask[:, start:end] = pattern.mask(_saliency(work, upper, start, end))
        for column in range(start, end):
            if pattern.is_grouped and column % pattern.m == 0:
                group = slice(column, column + pattern.m)
                mask[:, group] = pattern.mask(_saliency(work, upper, column, column + pattern.m))
            kept = np.where(mask[:, column], work[:, column], 0.0)
            error = (work[:, column] - kept) / upper[column, column]
            work[:, column:end] -= np.outer(error, upper[column, column:end])
            work[:, column] = kept
            errors[:, column - start] = error
        work[:, end:] -= errors @ upper[start:end, end:]
    return np.where(mask, work, 0.0), mask


def _saliency(work: np.ndarray, upper: np.ndarray, start: int, end: int) -> np.ndarray:
    return np.asarray(np.square(work[:, start:end] / np.diag(upper)[start:end]))
