"""Why an axis is coupled or pinned: the chain of unifications behind `inspect --why TENSOR:AXIS`.

What the analysis wrote down is followed from the axis to the pin, or to the other members of its group. Only
statements about the very slots in question count: an axis of 12 x 64 slots says nothing about its 12 where a
statement is about the 64.
"""

from __future__ import annotations

import difflib
from collections import deque
from collections.abc import Iterator
from typing import Any

import onnx_ir as ir

from sparsecc.axes.algebra import Atom, Axis, Cat, Mul, atoms_of
from sparsecc.errors import InputError
from sparsecc.escaping import quoted
from sparsecc.graph.analysis import Analysis
from sparsecc.ir.file_names import in_file

Link = tuple[Atom, str]
"""Another atom that stands for some of the same slots, and the statement that says so."""


def explain(analysis: Analysis, where: str) -> dict[str, Any]:
    """Why the slots of `tensor:axis` are pinned, or what they go together with.

    `pinned` is the reason where no slot may go, else None; `steps` is the shortest chain to the pin, which
    ends with it, or the statements that tie the axis to the members of its group, which `coupled` lists.
    `held` names the pinned parts of an axis of which others are free. InputError where there is no such
    tensor or axis.
    """
    name, _, position = where.rpartition(":")
    start = _axis(analysis, name, position, where)
    atoms = [atom for atom in atoms_of(start) if atom.size != 1] or atoms_of(start)
    free = [atom for atom in atoms if atom.pin is None]
    chains = _Chains(analysis)
    if not free:
        steps = min((chains.to_pin(start, atom) for atom in atoms), key=len)
        return {"axis": where, "pinned": _reason(steps, atoms), "steps": steps, "coupled": []}
    coupled, steps = chains.to_members(start, free, where)
    held = [f"{_size(atom)} of it: {atom.pin}" for atom in atoms if atom.pin is not None]
    return {"axis": where, "pinned": None, "steps": steps, "coupled": coupled, "held": held}


def _reason(steps: list[str], atoms: list[Atom]) -> str:
    """The reason that the chain ends with."""
    return next((a.pin for a in atoms if a.pin and steps and steps[-1].endswith(a.pin)), atoms[0].pin or "")


def _axis(analysis: Analysis, name: str, position: str, where: str) -> Axis:
    for tensor, axes in _named(analysis):
        if tensor == name and position.isdigit() and int(position) < len(axes):
            return axes[int(position)]
    raise InputError(f"--why {where}: no such tensor and axis: {_nearest(analysis, where)}")


def _nearest(analysis: Analysis, where: str) -> str:
    """What to write instead: an axis of the tensor that was named, or the nearest names."""
    ranks = {name: len(axes) for name, axes in _named(analysis) if name and axes}
    meant = where if where in ranks else where.rpartition(":")[0]
    if meant in ranks:
        return f"{quoted(meant)} has axes 0 to {ranks[meant] - 1}: write {meant}:0"
    close = difflib.get_close_matches(meant or where, ranks, n=3, cutoff=0.4)
    names = f"the nearest names are {', '.join(map(quoted, close))}" if close else "its names are in --json"
    return f"write NAME:NUMBER; {names}"


def _named(analysis: Analysis) -> Iterator[tuple[str, list[Axis]]]:
    """The axes of every use of a weight, as the file has it and as it is stored, then those of every value."""
    for value, axes in analysis.weights():
        there = {in_file(value, axis): own for axis, own in enumerate(axes)}
        yield next(iter(there), (value.name or "", 0))[0], [there[place] for place in sorted(there)]
        yield value.name or "", axes
    for value, axes in analysis.record.axes.items():
        yield value.name or "", axes


class _Chains:
    """The statements of an analysis as links between atoms, with names for the atoms."""

    def __init__(self, analysis: Analysis) -> None:
        self.analysis = analysis
        self.names: dict[Atom, str] = {}
        for tensor, axes in _named(analysis):
            for position, axis in enumerate(axes):
                if isinstance(axis, Atom):
                    self.names.setdefault(axis, f"{tensor}:{position}")
        self.links: dict[Atom, list[Link]] = {}
        for cause, atom, bound in analysis.space.journal:
            step = f"{_title(cause)}: {self._shown(atom)} is {self._shown(bound)}"
            for other in _mentioned(bound):
                self.links.setdefault(atom, []).append((other, step))
                self.links.setdefault(other, []).append((atom, step))

    def to_pin(self, start: Axis, atom: Atom) -> list[str]:
        """The shortest chain from an axis to the statement that pins one of its free atoms."""
        pins = {pinned: (cause, reason) for cause, pinned, reason in self.analysis.space.pins}
        for reached, path in self._walk(start, atom):
            if reached in pins:
                cause, reason = pins[reached]
                title = _title(cause)
                return [*path, reason if title in reason else f"{title}: {reason}"]
        return [atom.pin or ""]

    def to_members(self, start: Axis, atoms: list[Atom], where: str) -> tuple[list[str], list[str]]:
        """The other members of the groups of these atoms, and the statements that lead to them."""
        paths: list[dict[Atom, list[str]]] = [dict(self._walk(start, atom)) for atom in atoms]
        coupled: dict[str, None] = {}
        steps: dict[str, None] = {}
        for value, axes in self.analysis.weights():
            for position, axis in enumerate(axes):
                name = f"{value.name}:{position}"
                if name == where or not set(atoms) & set(atoms_of(axis)):
                    continue
                coupled[name] = None
                ways = [path[a] for path in paths for a in _mentioned(axis) if a in path]
                steps |= dict.fromkeys(min(ways, key=len) if ways else ())
        return sorted(coupled), list(steps)

    def _walk(self, start: Axis, atom: Atom) -> Iterator[tuple[Atom, list[str]]]:
        """Breadth first, every atom that stands for slots of `atom`, with the shortest chain to it."""
        queue = deque((a, list[str]()) for a in _mentioned(start) if atom in atoms_of(a))
        seen = {a for a, _ in queue}
        while queue:
            reached, path = queue.popleft()
            yield reached, path
            for other, step in self.links.get(reached, ()):
                if other not in seen and atom in atoms_of(other):
                    seen.add(other)
                    queue.append((other, path if path[-1:] == [step] else [*path, step]))

    def _shown(self, axis: Axis) -> str:
        """An axis by the tensor it was first seen on, or by its structure."""
        if isinstance(axis, Cat):
            return " + ".join(self._shown(p) for p in axis.parts)
        if isinstance(axis, Mul):
            return " x ".join(self._shown(f) for f in axis.factors)
        name = self.names.get(axis) if isinstance(axis, Atom) else None
        return f"{name} ({_size(axis)})" if name else _size(axis)


def _mentioned(axis: Axis) -> list[Atom]:
    """The atoms an axis was written with, as they were then."""
    found: list[Atom] = []
    stack = [axis]
    while stack:
        top = stack.pop()
        if isinstance(top, Atom):
            found.append(top)
        elif isinstance(top, Cat):
            stack.extend(top.parts)
        elif isinstance(top, Mul):
            stack.extend(top.factors)
    return found


def _title(cause: object) -> str:
    if isinstance(cause, ir.Node):
        return f"{cause.op_type} '{cause.name}'"
    if isinstance(cause, ir.Value):
        return f"'{cause.name}'"
    return "the model"


def _size(axis: Axis) -> str:
    return str(axis.size) if isinstance(axis.size, int) else "dynamic"
