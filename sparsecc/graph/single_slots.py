"""Slots that constant picks (a channel selection, a permutation) cut an axis into, gathered into groups again.

A shuffled axis is made of atoms of one slot each, in another order on either side. Those that appear in the same way
on every axis are alike: any of them may go, and each alone. They become the slots of one atom.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from sparsecc.axes.algebra import VANISHED, Atom, Axis, Cat, Mul, Run, atoms_of, factors_of, parts_of, resolve
from sparsecc.rules.site import Record

Key = tuple[object, ...]


def gather_single_slots(record: Record) -> None:
    """Make one atom of the free slots that are alike, where any of them is alone. Nothing may be unified after."""
    lists = [
        *record.uses.values(),
        *record.axes.values(),
        *(axes for macs in record.macs.values() for axes in macs),
    ]
    axes = [axis for axes in lists for axis in axes if axis.size != 1]
    cut = [axis for axis in axes if any(a.size == 1 and a.pin is None for a in atoms_of(axis))]
    if not cut:
        return
    wanted = {
        atom for axis in cut for atom in atoms_of(axis) if atom.pin is None and isinstance(atom.size, int)
    }
    places: dict[Atom, Counter[Key]] = {
        atom: Counter() for atom in dict.fromkeys(_in_order(cut)) if atom in wanted
    }
    for number, axis in enumerate(axis for axes in lists for axis in axes):
        for atom, beside in _terms(axis):
            if atom in places:
                places[atom][(number, beside)] += 1
    alike: dict[Key, list[Atom]] = {}
    for atom, found in places.items():
        alike.setdefault((atom.roles, frozenset(found.items())), []).append(atom)
    for atoms in alike.values():
        if len(atoms) > 1 and any(atom.size == 1 for atom in atoms) and not atoms[0].roles & VANISHED:
            _join(atoms)


def _in_order(axes: Sequence[Axis]) -> Iterator[Atom]:
    for axis in axes:
        yield from atoms_of(axis)


def _terms(axis: Axis) -> Iterator[tuple[Atom, Key]]:
    """Every place of an atom in an axis, with the factors that it is multiplied with on either side."""
    pending: list[tuple[Axis, Key, Key]] = [(axis, (), ())]
    while pending:
        top, outer, inner = pending.pop()
        top = resolve(top)
        if isinstance(top, Atom):
            yield top, (outer, inner)
        elif isinstance(top, Cat):
            pending.extend((part, outer, inner) for part in parts_of(top))
        elif isinstance(top, Mul):
            factors = [resolve(f) for f in factors_of(top)]
            names = [id(f) for f in factors]
            pending.extend(
                (f, (*outer, *names[:i]), (*names[i + 1 :], *inner)) for i, f in enumerate(factors)
            )


def _join(atoms: Sequence[Atom]) -> None:
    whole, start = Atom(sum(atom.size for atom in atoms if isinstance(atom.size, int))), 0
    whole.roles = atoms[0].roles
    for atom in atoms:
        assert isinstance(atom.size, int)
        atom.bound = Run(whole, start, atom.size)
        start += atom.size
