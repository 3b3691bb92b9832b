"""How many slots an axis has, given what is kept of its atoms."""

from __future__ import annotations

import math
from collections.abc import Mapping

from sparsecc.axes.algebra import Atom, Axis, count, factors_of, resolve
from sparsecc.axes.sizes import at, is_unknown

Kept = Mapping[Atom, int]


def slots(axis: Axis, kept: Kept) -> int:
    """Slots of an axis at the first probe's input sizes; what only the data decides counts as one."""
    return math.prod(at(count(factor, kept), 0) for factor in _counted(axis))


def _counted(axis: Axis) -> list[Axis]:
    if not is_unknown(axis.size):
        return [resolve(axis)]
    return [factor for factor in factors_of(axis) if not is_unknown(factor.size)]
