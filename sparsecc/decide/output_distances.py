"""Other distances of the outputs of two models than their loss, which layers may be judged by instead."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from sparsecc.allocators.angular import angles_between

Distance = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(reference, found), two equally shaped float64 arrays -> distances, one per row or one of all."""


def divergence(reference: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Jensen-Shannon divergence of the rows as distributions (softmax), in nats: 0 to log 2."""
    p, q = _distributions(reference), _distributions(found)
    middle = (p + q) / 2
    return np.asarray(np.maximum(_entropy(middle) - (_entropy(p) + _entropy(q)) / 2, 0.0))


def angular(reference: np.ndarray, found: np.ndarray) -> np.ndarray:
    """The angle between the rows in half turns: 0 to 1."""
    return angles_between(reference, found, (-1,))


def _distributions(rows: np.ndarray) -> np.ndarray:
    """(places, classes)"""
    flat = rows.reshape(-1, rows.shape[-1])
    grown = np.exp(flat - flat.max(axis=1, keepdims=True))
    return np.asarray(grown / grown.sum(axis=1, keepdims=True))


def _entropy(p: np.ndarray) -> np.ndarray:
    return np.asarray(-np.sum(p * np.log(np.where(p > 0, p, 1.0)), axis=1))


DISTANCES: Mapping[str, Distance] = {"divergence": divergence, "angular": angular}


def distances(
    reference: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray], distance: Distance
) -> np.ndarray:
    """Those of all float outputs; infinite where an output is no longer finite or has another shape."""
    apart = []
    for name, wanted in reference.items():
        if wanted.dtype.kind != "f" and wanted.dtype.name != "bfloat16":
            continue
        a, b = (np.atleast_1d(array).astype(np.float64) for array in (wanted, found[name]))
        if a.shape != b.shape or not np.isfinite(b).all():
            return np.asarray([np.inf])
        apart.append(distance(a, b))
    return np.concatenate(apart) if apart else np.zeros(1)
