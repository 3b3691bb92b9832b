"""The weights of a group seen slot by slot."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from sparsecc.axes.algebra import Atom, Axis, atoms_of
from sparsecc.axes.owners import slot_sums
from sparsecc.graph.analysis import Analysis
from sparsecc.graph.groups import Group
from sparsecc.ir.dtypes import FLOATS
from sparsecc.system.gc_pause import collector_paused

BLOCK = 1 << 20
"""Elements looked at in one go: what stays in the cache, and all that is ever expanded to single precision."""


class SlotWeights:
    """Sums of |w|^power over everything a slot owns in each member, cached per tensor.

    Members are uses of initializers; a tensor is read once per power, block by block, and let go at once. `instead`
    has, of tensors that a weight is computed from, the weight that stands for it, or None where another does.
    """

    @collector_paused()
    def __init__(
        self, analysis: Analysis, seed: int = 0, instead: Mapping[ir.Value, np.ndarray | None] | None = None
    ) -> None:
        self.seed = seed
        self._instead = instead or {}
        self._cache: dict[tuple[ir.Value, int], dict[int, np.ndarray]] = {}
        self._members: dict[Atom, list[tuple[ir.Value, int, Axis]]] = {}
        self._positions: dict[ir.Value, set[int]] = {}
        for value, axes in analysis.weights():
            tensor = value.const_value
            if tensor is None or tensor.dtype not in FLOATS or self._instead.get(value, tensor) is None:
                continue
            for position, axis in enumerate(axes):
                for atom in atoms_of(axis):
                    self._members.setdefault(atom, []).append((value, position, axis))
                    self._positions.setdefault(value, set()).add(position)

    def members(self, group: Group, power: int) -> Iterator[np.ndarray]:
        """Per member, the sum of |w|^power per slot of the group: shape (group.size,)."""
        for value, position, axis in self._members.get(group.atom, ()):
            yield slot_sums(axis, group.atom, self._sums(value, power)[position])

    def values(self, group: Group) -> Iterator[tuple[ir.Value, int, Axis]]:
        """Each member as (initializer, axis position, axis)."""
        yield from self._members.get(group.atom, ())

    def shapes(self, group: Group) -> tuple[tuple[int, ...], ...]:
        """The shapes of its members with more than one axis, each once."""
        tensors = {value: value.const_value for value, _, _ in self.values(group)}
        shapes = [tuple(int(d) for d in t.shape) for t in tensors.values() if t is not None]  # type: ignore[arg-type]
        return tuple(shape for shape in shapes if len(shape) > 1)

    def _sums(self, value: ir.Value, power: int) -> dict[int, np.ndarray]:
        """By axis position."""
        key = (value, power)
        if key not in self._cache:
            assert value.const_value is not None
            array = self._instead.get(value)
            array = value.const_value.numpy() if array is None else array
            self._cache[key] = axis_sums(array, power, sorted(self._positions[value]))
        return self._cache[key]


def axis_sums(array: np.ndarray, power: int, positions: Sequence[int]) -> dict[int, np.ndarray]:
    """Sums of |w|^power over all axes but one, for each of `positions`; infinite where one is not finite."""
    totals = {position: np.zeros(array.shape[position]) for position in positions}
    rows = max(1, BLOCK * len(array) // max(array.size, 1)) if array.ndim else 1
    for start in range(0, len(array) if array.ndim else 0, rows):
        block = np.abs(array[start : start + rows].astype(np.float32, copy=False))
        if power != 1:
            block **= power
        for position, total in totals.items():
            others = tuple(axis for axis in range(block.ndim) if axis != position)
            part = slice(start, start + rows) if position == 0 else slice(None)
            total[part] += block.sum(axis=others, dtype=np.float64)
    return {position: np.where(np.isfinite(total), total, np.inf) for position, total in totals.items()}
