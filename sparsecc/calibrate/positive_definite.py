"""Symmetric positive definite matrices (n, n), float64, by Cholesky: up to half of the work of a general solver.

Rounding may leave a covariance indefinite; a general solver takes over then, where there is no other way.
"""

from __future__ import annotations

import numpy as np
import scipy

_TILE = 512


def inverse(matrix: np.ndarray) -> np.ndarray | None:
    """The inverse, equal to its own transpose to the last bit; None of a matrix that is not positive definite. What is
    no number is handed on."""
    lapack = scipy.linalg.lapack
    if not np.isfinite(matrix).all():
        return np.linalg.inv(matrix)
    factor, refused = lapack.dpotrf(matrix.T, lower=1, clean=0)
    if not refused:
        found, refused = lapack.dpotri(factor, lower=1, overwrite_c=1)
    return None if refused else _whole(found)


def solved(matrix: np.ndarray, right: np.ndarray) -> np.ndarray:
    """What `matrix` multiplies to `right` (n, columns). LinAlgError where there is nothing."""
    factor, refused = scipy.linalg.lapack.dpotrf(matrix.T, lower=1, clean=0)
    if refused:
        return np.asarray(np.linalg.solve(matrix, right))
    return np.asarray(scipy.linalg.cho_solve((factor, True), right, check_finite=False))


def inverse_root(matrix: np.ndarray) -> np.ndarray:
    """A matrix R with R^T R the inverse; NaN where rounding left no root."""
    factor, refused = scipy.linalg.lapack.dpotrf(matrix.T, lower=1)
    if refused:
        return np.full_like(matrix, np.nan)
    return np.asarray(scipy.linalg.lapack.dtrtri(factor, lower=1)[0])


def upper_root_of_inverse(matrix: np.ndarray) -> np.ndarray:
    """The upper triangular U with U^T U the inverse: what goes backwards along both axes is a lower one's."""
    return np.ascontiguousarray(inverse_root(np.ascontiguousarray(matrix[::-1, ::-1]))[::-1, ::-1])


def _whole(lower: np.ndarray) -> np.ndarray:
    """Both triangles, in place, of a matrix of which only the lower one is known."""
    for start in range(0, len(lower), _TILE):
        tile = slice(start, start + _TILE)
        corner = np.tril(lower[tile, tile])
        lower[tile, tile] = corner + np.tril(corner, -1).T
        lower[tile, start + _TILE :] = lower[start + _TILE :, tile].T
    return lower
