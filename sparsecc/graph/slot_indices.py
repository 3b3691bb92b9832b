"""Values that hold slot numbers: what TopK found in a router, until weights are picked by it.

A slot number means the same slot before and after removal only where everything it is looked up in loses the
same slots. So the numbers of an axis may be moved about and used to pick along that axis; whoever reads them
in any other way pins it.
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from sparsecc.axes.algebra import Atom, Space, atoms_of, resolve
from sparsecc.rules import Trait
from sparsecc.rules.site import Record, Site


def pass_on(site: Site, traits: Trait) -> None:
    """Numbers, and weights picked by them, are what they were after being moved; other readers pin their axis.

    `traits` are those of the node's operator.
    """
    moves = Trait.MOVES in traits
    record, node = site.record, site.node
    for operand, value in enumerate(node.inputs):
        axis = record.numbers.get(value) if value is not None else None
        if value is None or axis is None or operand in site.looked_up:
            continue
        if operand == 0 and moves and node not in record.unfollowed:
            record.numbers.update((output, axis) for output in node.outputs)
        elif Trait.COUNTS not in traits:
            site.pin(axis, f"operand {operand} holds numbers of the slots, and is read as data: the slots")
    if moves and node.inputs and node.inputs[0] in record.picked:
        record.picked.update(node.outputs)


def pin_numbered(space: Space, record: Record, values: Iterable[ir.Value], what: str) -> None:
    """Slots whose numbers leave through these values stay."""
    for value in values:
        if value in record.numbers:
            space.pin(record.numbers[value], f"numbers of its slots reach {what} '{value.name}'")


def settle(space: Space, record: Record) -> None:
    """Axes that are searched or normalised stay, unless they turned out to be the experts of a mixture."""
    for cause, axis, reason in record.unless_experts:
        found = resolve(axis)
        space.cause = cause
        if not (isinstance(found, Atom) and "expert" in found.roles):
            space.pin(axis, reason)


def least_left(record: Record) -> dict[Atom, int]:
    """How many slots an atom must keep because that many are picked out of it."""
    least: dict[Atom, int] = {}
    for axis, number in record.chosen:
        for atom in atoms_of(axis):
            least[atom] = max(least.get(atom, 1), number)
    return least
