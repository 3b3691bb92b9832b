"""Which slots of an axis belong to which slot of an atom."""

from __future__ import annotations

import numpy as np

from sparsecc.axes.algebra import Atom, Axis, Cat, Mul, Run, parts_of, resolve
from sparsecc.axes.sizes import at


def slot_sums(axis: Axis, atom: Atom, values: np.ndarray) -> np.ndarray:
    """Sum one value per slot of `axis` onto the slots of `atom`: shape (atom.size,).

    Every slot of the axis that exists because of slot i of the atom adds to entry i.
    """
    assert isinstance(atom.size, int)
    owners = owners_of(axis, atom)
    sums = np.zeros(atom.size, dtype=np.float64)
    seen = owners >= 0
    np.add.at(sums, owners[seen], values[seen])
    return sums


def owners_of(axis: Axis, atom: Atom) -> np.ndarray:
    """For each slot of `axis`, the slot of `atom` it belongs to, or -1. Shape (axis.size,)."""
    axis = resolve(axis)
    if isinstance(axis, Atom):
        assert isinstance(axis.size, int)
        return np.arange(axis.size) if axis is atom else np.full(axis.size, -1)
    if isinstance(axis, Run):
        size = at(axis.size, 0)
        return np.arange(axis.start, axis.start + size) if axis.whole is atom else np.full(size, -1)
    if isinstance(axis, Cat):
        return np.concatenate([owners_of(part, atom) for part in parts_of(axis)])
    assert isinstance(axis, Mul)
    total = np.full(1, -1)
    for factor in axis.factors:
        owner = owners_of(factor, atom)
        total = np.maximum(total[:, None], owner[None, :]).ravel()
    return total
