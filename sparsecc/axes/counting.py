"""How many slots an axis has, given what is kept of its atoms."""

from __future__ import annotations

import math
from collections.abc import Mapping

from sparsecc.axes.algebra import Atom, Axis, Cat, Mul, Run, factors_of, parts_of, resolve
from sparsecc.axes.sizes import Size, at, is_unknown, plus, product, times

Kept = Mapping[Atom, int]


def count(axis: Axis, kept: Mapping[Atom, int]) -> Size:
    """How many slots of an axis stay when each atom keeps `kept[atom]` of its own (all where absent); what has runs of
    an atom has all of them."""
    axis = resolve(axis)
    if isinstance(axis, Atom):
        return kept.get(axis, axis.size)
    if isinstance(axis, Mul):
        return product(count(f, kept) for f in axis.factors)
    assert isinstance(axis, Cat)
    total: Size = 0
    runs: dict[tuple[Atom, Size], int] = {}
    for part in parts_of(axis):
        run = next((f for f in factors_of(part) if isinstance(f, Run)), None)
        others = product(count(f, kept) for f in factors_of(part) if f is not run)
        if run is None:
            total = plus(total, others)
        else:
            runs[run.whole, others] = runs.get((run.whole, others), 0) + at(run.size, 0)
    for (whole, others), slots in runs.items():
        size = at(whole.size, 0)
        total = plus(total, times(others, slots * kept.get(whole, size) // size))
    return total


def slots(axis: Axis, kept: Kept) -> int:
    """Slots of an axis at the first probe's input sizes; what only the data decides counts as one."""
    return math.prod(at(count(factor, kept), 0) for factor in _counted(axis))


def _counted(axis: Axis) -> list[Axis]:
    if not is_unknown(axis.size):
        return [resolve(axis)]
    return [factor for factor in factors_of(axis) if not is_unknown(factor.size)]
