"""Which slots of a tensor are left in a smaller one, found from the values alone: no tool has to tell."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

Kept = dict[int, np.ndarray]
"""Axis -> the slots of the dense tensor that are left, ascending."""


def kept_slots(dense: np.ndarray, small: np.ndarray) -> Kept | None:
    """The slots that are left along every axis that got shorter; None where `small` is no slice of `dense`.

    Works where the values are distinct, as random weights are. What is left may lie in another order.
    """
    if dense.ndim != small.ndim or any(s > d for s, d in zip(small.shape, dense.shape, strict=True)):
        return None
    flat = dense.ravel()
    order = np.argsort(flat, kind="stable")
    at = np.minimum(np.searchsorted(flat[order], small.ravel()), flat.size - 1)
    if not np.array_equal(flat[order[at]], small.ravel()):
        return None
    places = np.unravel_index(order[at], dense.shape)
    every: Kept = {}
    for axis in range(dense.ndim):
        rows = np.moveaxis(places[axis].reshape(small.shape), axis, 0).reshape(small.shape[axis], -1)
        every[axis] = np.median(rows, axis=1).astype(np.int64)
    if not np.array_equal(dense[np.ix_(*every.values())], small):
        return None
    return {axis: np.sort(slots) for axis, slots in every.items() if len(slots) < dense.shape[axis]}


def changed(dense: Mapping[str, np.ndarray], small: Mapping[str, np.ndarray]) -> dict[str, Kept | None]:
    """What is left of every tensor of that name whose shape changed."""
    return {
        name: kept_slots(array, small[name])
        for name, array in dense.items()
        if name in small and small[name].shape != array.shape
    }
