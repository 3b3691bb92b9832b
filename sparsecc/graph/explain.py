"""Why an axis is coupled or pinned: the chain of unifications behind `inspect --why TENSOR:AXIS`."""

from __future__ import annotations

from collections import deque
from typing import Any

import onnx_ir as ir

from sparsecc.axes import Atom, Axis, Cat, Mul, atoms_of
from sparsecc.errors import InputError
from sparsecc.graph.analysis import Analysis


def explain(analysis: Analysis, where: str) -> dict[str, Any]:
    """The steps from `tensor:axis` to what pins it, or to the other members of its group.

    InputError where there is no such tensor or axis.
    """
    name, _, position = where.rpartition(":")
    start = _axis(analysis, name, position, where)
    links = _links(analysis)
    pinned = {id(atom): (cause, reason) for cause, atom, reason in analysis.space.pins}
    reached = _search(start, links)
    for atom, path in reached.items():
        if id(atom) in pinned:
            cause, reason = pinned[id(atom)]
            return {"axis": where, "pinned": reason, "steps": [*path, f"{_title(cause)}: {reason}"]}
    coupled = {
        f"{value.name}:{i}"
        for value, axes in analysis.weights()
        for i, axis in enumerate(axes)
        if set(atoms_of(axis)) & set(atoms_of(start))
    }
    steps = list(dict.fromkeys(step for path in reached.values() for step in path))
    return {"axis": where, "pinned": None, "steps": steps, "coupled": sorted(coupled - {where})}


def _axis(analysis: Analysis, name: str, position: str, where: str) -> Axis:
    for value, axes in analysis.weights():
        if value.name == name and position.isdigit() and int(position) < len(axes):
            return axes[int(position)]
    for value, axes in analysis.record.axes.items():
        if value.name == name and position.isdigit() and int(position) < len(axes):
            return axes[int(position)]
    raise InputError(
        f"--why {where}: no such tensor and axis: write NAME:NUMBER, see 'sparsecc inspect --json'"
    )


def _links(analysis: Analysis) -> dict[Atom, list[tuple[Atom, str]]]:
    links: dict[Atom, list[tuple[Atom, str]]] = {}
    for cause, atom, bound in analysis.space.journal:
        for other in _mentioned(bound):
            step = f"{_title(cause)}: {_shown(atom)} is {_shown(bound)}"
            links.setdefault(atom, []).append((other, step))
            links.setdefault(other, []).append((atom, step))
    return links


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


def _search(start: Axis, links: dict[Atom, list[tuple[Atom, str]]]) -> dict[Atom, list[str]]:
    """Breadth first: every atom that is linked to the start, with the shortest chain of steps."""
    reached: dict[Atom, list[str]] = {atom: [] for atom in _mentioned(start)}
    queue = deque(reached)
    while queue:
        atom = queue.popleft()
        for other, step in links.get(atom, ()):
            if other not in reached:
                reached[other] = [*reached[atom], step]
                queue.append(other)
    return reached


def _title(cause: object) -> str:
    if isinstance(cause, ir.Node):
        return f"{cause.op_type} '{cause.name}'"
    if isinstance(cause, ir.Value):
        return f"'{cause.name}'"
    return "the model"


def _shown(axis: Axis) -> str:
    if isinstance(axis, Cat):
        return "+".join(_shown(p) for p in axis.parts)
    if isinstance(axis, Mul):
        return "x".join(_shown(f) for f in axis.factors)
    return str(axis.size)
