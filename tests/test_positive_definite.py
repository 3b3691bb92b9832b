"""Inverses and roots of symmetric positive definite matrices, and what happens to others."""

from __future__ import annotations

import numpy as np
import pytest
import scipy

from sparsecc.calibrate import positive_definite


def definite(size: int) -> np.ndarray:
    rows = np.random.default_rng(size).standard_normal((2 * size, size))
    return np.asarray(rows.T @ rows + np.eye(size))


@pytest.mark.parametrize("size", [1, 5, 600, 1100])  # within a tile, across tiles
def test_the_inverse_is_one_and_symmetric(size: int) -> None:
    matrix = definite(size)
    found = positive_definite.inverse(matrix)
    assert found is not None
    np.testing.assert_allclose(found @ matrix, np.eye(size), atol=1e-9)
    assert (found == found.T).all()


def test_roots_multiply_to_the_inverse() -> None:
    matrix = definite(40)
    wanted = np.linalg.inv(matrix)
    lower, upper = positive_definite.inverse_root(matrix), positive_definite.upper_root_of_inverse(matrix)
    np.testing.assert_allclose(lower.T @ lower, wanted, atol=1e-12)
    np.testing.assert_allclose(upper, scipy.linalg.cholesky(wanted, lower=False), atol=1e-12)


def test_what_is_not_definite_is_solved_all_the_same() -> None:
    matrix, right = np.diag([1.0, -2.0, 3.0]), np.arange(6.0).reshape(3, 2)
    assert positive_definite.inverse(matrix) is None
    np.testing.assert_allclose(positive_definite.solved(matrix, right), np.linalg.solve(matrix, right))
    assert np.isnan(positive_definite.inverse_root(matrix)).all()
