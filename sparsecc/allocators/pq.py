"""Shares by how unevenly a group's scores are spread: the PQ index.

"Pruning Deep Neural Networks from a Sparsity Perspective" (Diao et al., 2023): with 0 < p < q the index of a vector
of length d is I = 1 - d^(1/q - 1/p) |w|_p / |w|_q, and at least d (1 - I)^(qp / (q - p)) entries must stay.
"""

from __future__ import annotations

import numpy as np

from sparsecc.allocators.base import Problem, Selection, by_shares

P, Q = 0.5, 1.0


def pq_index(values: np.ndarray, p: float = P, q: float = Q) -> float:
    """In [0, 1): 0 where all are equal, larger the fewer hold most. Of non-negative values; 0 of nothing."""
    sizes = np.abs(np.nan_to_num(values, posinf=0.0)).astype(np.float64)
    if not sizes.any():
        return 0.0
    sizes = sizes / sizes.max()
    norms = [float(np.sum(sizes**power)) ** (1 / power) for power in (p, q)]
    return float(1 - len(sizes) ** (1 / q - 1 / p) * norms[0] / norms[1])


def least_kept(values: np.ndarray, p: float = P, q: float = Q) -> float:
    """The share of entries that must stay: 1 where all are equal."""
    return float((1 - pq_index(values, p, q)) ** (q * p / (q - p)))


def pq(problem: Problem) -> Selection:
    """Groups give up shares in proportion to what their index says can go; none where all slots are alike.

    Beyond the point where the index lets no more go, all groups shrink alike.
    """
    spare = np.array([1 - least_kept(c.scores) for c in problem.candidates])
    largest = spare.max(initial=0.0)
    own = spare / largest if largest > 0 else np.ones_like(spare)
    return by_shares(problem, lambda t: (1 - min(1.0, 2 * (1 - t)) * own) * min(1.0, 2 * t))
