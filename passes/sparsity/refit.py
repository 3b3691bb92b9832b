"""The exact repair of a mask: for every output, the kept weights that best reproduce the dense output."""

from __future__ import annotations

import numpy as np
import scipy

from sparsecc.passes.weights.input_moments import damped


def refit_rows(matrix: np.ndarray, mask: np.ndarray, gram: np.ndarray) -> np.ndarray:
    """Least squares per row: w_K = (H_KK)^-1 H_K w, zero outside the mask.

    matrix and mask (out, k), gram (k, k). One solve per output; rows with nothing kept stay zero.
    """
    safe = damped(gram, 1e-4)
    targets = matrix.astype(np.float64) @ safe
    result = np.zeros(matrix.shape)
    for row in range(len(matrix)):
        kept = np.flatnonzero(mask[row])
        if kept.size:
            factor = scipy.linalg.cho_factor(safe[np.ix_(kept, kept)], check_finite=False)
            result[row, kept] = scipy.linalg.cho_solve(factor, targets[row, kept], check_finite=False)
    return result
