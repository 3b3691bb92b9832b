"""Bytes as a program over the axis algebra: build axes, state that they are equal, cut them, look at them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from sparsecc.axes.algebra import Atom, Axis, Space, atoms_of, cat, mask, mul
from sparsecc.axes.counting import count
from sparsecc.axes.owners import owners_of
from sparsecc.axes.sizes import at

LARGEST = 128
"""Slots of one axis: enough for every rule to act, few enough to compare slot by slot."""
SIZES = (1, 2, 3, 4, 5, 6, 8, 9, 12, 16, 24, 64)
Pool = list[Axis]


class Machine:
    """A pool of axes that a program fills. What must hold is asserted after every step."""

    def __init__(self, program: bytes) -> None:
        self._program = iter(program)
        self.space = Space()
        self.pool: Pool = [Atom(6)]
        self.equal: list[tuple[Axis, Axis]] = []

    def run(self) -> None:
        """Carry the program out to its end."""
        for step in self._program:
            OPERATIONS[step % len(OPERATIONS)](self)
        for a, b in self.equal:
            require_equal(a, b)
        for axis in self.pool:
            require_sound(axis)

    def byte(self) -> int:
        return next(self._program, 0)

    def axis(self) -> Axis:
        return self.pool[self.byte() % len(self.pool)]

    def some(self) -> list[Axis]:
        return [self.axis() for _ in range(2 + self.byte() % 2)]

    def keep(self, axis: Axis) -> None:
        if 0 < at(axis.size, 0) <= LARGEST and len(self.pool) < 64:
            self.pool.append(axis)


def _atom(machine: Machine) -> None:
    machine.keep(Atom(SIZES[machine.byte() % len(SIZES)]))


def _cat(machine: Machine) -> None:
    machine.keep(cat(machine.some()))


def _mul(machine: Machine) -> None:
    machine.keep(mul(machine.some()))


def _unify(machine: Machine) -> None:
    a, b = machine.axis(), machine.axis()
    if machine.space.unify(a, b):
        machine.equal.append((a, b))
    else:
        assert all(atom.pin for axis in (a, b) for atom in atoms_of(axis))


def _unify_equal_sizes(machine: Machine) -> None:
    a = machine.axis()
    like = [b for b in machine.pool if b.size == a.size]
    b = like[machine.byte() % len(like)]
    if machine.space.unify(a, b):
        machine.equal.append((a, b))


def _cut(machine: Machine) -> None:
    axis, after = machine.axis(), machine.byte()
    halves = machine.space.cut(axis, after)
    if halves is not None:
        machine.equal.append((axis, cat(halves)))
        for half in halves:
            machine.keep(half)


def _pieces(machine: Machine) -> None:
    axis = machine.axis()
    sizes = [machine.byte() % 9 for _ in range(3)]
    pieces = machine.space.pieces(axis, sizes)
    if pieces is not None:
        machine.equal.append((axis, cat(pieces)))


def _factored(machine: Machine) -> None:
    axis = machine.axis()
    outer = SIZES[machine.byte() % len(SIZES)]
    factors = machine.space.factored(axis, (outer, max(1, at(axis.size, 0) // outer)))
    if factors is not None:
        machine.equal.append((axis, mul(factors)))


def _pin(machine: Machine) -> None:
    machine.space.pin(machine.axis(), "pinned")


def _mark(machine: Machine) -> None:
    machine.space.mark(machine.axis(), "head")


OPERATIONS: tuple[Callable[[Machine], None], ...] = (
    *(_atom, _cat, _mul, _unify, _unify_equal_sizes),
    *(_cut, _pieces, _factored, _pin, _mark),
)


def require_equal(a: Axis, b: Axis) -> None:
    """Two axes that were stated to be equal are made of the same slots of the same atoms."""
    atoms = set(atoms_of(a))
    assert {x for x in atoms if x.size != 1} == {x for x in atoms_of(b) if x.size != 1}
    for atom in atoms:
        if atom.size != 1:
            assert np.array_equal(owners_of(a, atom), owners_of(b, atom))


def require_sound(axis: Axis) -> None:
    """Masks have the length of their axis, and `count` counts what they keep."""
    keep = dict(_masks(axis))
    kept = mask(axis, keep)
    if kept is None:
        return
    assert kept.shape == (axis.size,)
    assert kept.sum() == count(axis, {atom: int(slots.sum()) for atom, slots in keep.items()})


def _masks(axis: Axis) -> Iterator[tuple[Atom, np.ndarray]]:
    for number, atom in enumerate(atoms_of(axis)):
        yield atom, np.arange(at(atom.size, 0)) % (number % 3 + 2) != 1
