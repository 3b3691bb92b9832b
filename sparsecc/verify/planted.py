"""Faults planted on purpose: a proof that would not notice them is none.

A plant is one constant of the pruned graph as it would be, had it been cut to the right number of wrong slots along
one axis. All plants are inputs of one session, whose defaults are the right constants: trying one is a run.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from sparsecc.graph.rewrite import Cut
from sparsecc.runtime.numerics import TOLERANCE

NUMBER = 12
"""Faults planted in a compile, fewer where fewer constants were cut."""

FEW = 8
"""The same where a model's weights are LARGE, or it is run by parts: each plant is a run that reads them again."""
LARGE = 64 << 20
"""Bytes of weights."""

_TRIES = 4
_LOOKED_AT = 64
"""So many of the wrong slots tell whether they differ from the right ones."""
_SIZES = (ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL, ir.DataType.STRING)
"""Types of shapes, bounds and indices, which a session may demand as constants."""


@dataclass(frozen=True)
class Plant:
    """A constant of the pruned graph with wrong slots along an axis, and the layer that reads it."""

    cut: Cut
    axis: int
    slots: np.ndarray
    layer: str

    @property
    def name(self) -> str:
        return self.cut.value.name or ""

    def wrong(self) -> np.ndarray:
        """The constant with the wrong slots; made anew, as large ones are not kept."""
        return _cut(self.cut, {**self.cut.slots, self.axis: self.slots})


def plants_of(cuts: Sequence[Cut], seed: int, number: int = NUMBER) -> list[Plant]:
    """Drawn over kinds (the operator, its operand, the axis) in turn, and over layers within each kind.

    What is equal at all slots gives no plant: nobody can tell its slots apart.
    """
    generator = np.random.default_rng(seed)
    kinds: dict[tuple[str, int, int], list[tuple[Cut, int, str]]] = {}
    for cut in cuts:
        use = next(iter(cut.value.uses()), None)
        if use is None or cut.dense.dtype in _SIZES:
            continue
        for axis in cut.slots:
            kind = (use.node.op_type, use.idx, axis)
            kinds.setdefault(kind, []).append((cut, axis, use.node.name or use.node.op_type))
    found: list[Plant] = []
    for cut, axis, layer in _in_turn(kinds.values(), generator):
        if len(found) >= number:
            break
        slots = _wrong_slots(cut, axis, generator)
        if slots is not None:
            found.append(Plant(cut, axis, slots, layer))
    return found


def _in_turn(
    kinds: Iterable[list[tuple[Cut, int, str]]], generator: np.random.Generator
) -> Iterator[tuple[Cut, int, str]]:
    """One of each kind, then another of each, until none is left; each kind in a drawn order."""
    waiting = [[kind[i] for i in generator.permutation(len(kind))] for kind in kinds]
    while waiting:
        for kind in waiting:
            yield kind.pop()
        waiting = [kind for kind in waiting if kind]


def _wrong_slots(cut: Cut, axis: int, generator: np.random.Generator) -> np.ndarray | None:
    """As many slots of the axis, others than the right ones; None where all are alike, up to what no comparison
    tells apart."""
    right = cut.slots[axis]
    for _ in range(_TRIES):
        slots = np.sort(generator.permutation(cut.dense.shape.numpy()[axis])[: right.size])
        apart = np.flatnonzero(slots != right)[:_LOOKED_AT]
        some = (_cut(cut, {**cut.slots, axis: which[apart]}) for which in (right, slots))
        if apart.size and not _alike(*some):
            return slots
    return None


def _cut(cut: Cut, slots: Mapping[int, np.ndarray]) -> np.ndarray:
    array = cut.dense.numpy()
    for axis, index in sorted(slots.items(), key=lambda one: one[1].size):
        array = np.take(array, index, axis=axis)
    return np.ascontiguousarray(array)


def _alike(right: np.ndarray, wrong: np.ndarray) -> bool:
    if np.array_equal(right, wrong) or right.dtype.kind not in "f":
        return np.array_equal(right, wrong)
    apart, largest = np.abs(right - wrong).max(), max(right.max(), -right.min())
    return bool(apart <= TOLERANCE * largest)
