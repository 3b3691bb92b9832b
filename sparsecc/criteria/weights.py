"""The weights of a group seen slot by slot."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from sparsecc.axes import Atom, Axis, atoms_of, slot_sums
from sparsecc.cost import FLOATS
from sparsecc.graph.analysis import Analysis
from sparsecc.graph.groups import Group


class SlotWeights:
    """Sums of |w|^power over everything a slot owns in each member, cached per tensor.

    Members are uses of initializers; a tensor is read once per axis and power, and let go at once.
    """

    def __init__(self, analysis: Analysis, seed: int = 0) -> None:
        self.seed = seed
        self._cache: dict[tuple[ir.Value, int, int], np.ndarray] = {}
        self._members: dict[Atom, list[tuple[ir.Value, int, Axis]]] = {}
        for value, axes in analysis.weights():
            tensor = value.const_value
            if tensor is None or tensor.dtype not in FLOATS:
                continue
            for position, axis in enumerate(axes):
                for atom in atoms_of(axis):
                    self._members.setdefault(atom, []).append((value, position, axis))

    def members(self, group: Group, power: int) -> Iterator[np.ndarray]:
        """Per member, the sum of |w|^power per slot of the group: shape (group.size,)."""
        for value, position, axis in self._members.get(group.atom, ()):
            yield slot_sums(axis, group.atom, self._sums(value, position, power))

    def values(self, group: Group) -> Iterator[tuple[ir.Value, int, Axis]]:
        """Each member as (initializer, axis position, axis)."""
        yield from self._members.get(group.atom, ())

    def _sums(self, value: ir.Value, position: int, power: int) -> np.ndarray:
        key = (value, position, power)
        if key not in self._cache:
            assert value.const_value is not None
            array = np.abs(value.const_value.numpy().astype(np.float32, copy=False))
            array = np.nan_to_num(array, nan=np.inf, posinf=np.inf)
            if power != 1:
                array = array**power
            others = tuple(i for i in range(array.ndim) if i != position)
            self._cache[key] = array.sum(axis=others, dtype=np.float64)
        return self._cache[key]
