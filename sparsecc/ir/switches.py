"""A graph made ready for a proof: branches that a flag turns, kernels that round nothing on the way."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from sparsecc.ir.constants import add_constant

_LEAST_OPSET = 7
"""Before, Or did not broadcast."""

Placed = tuple[ir.Node, tuple[tuple[ir.Node, int], ...]]
"""An If, and the Ifs around it with the branches that it stands in, outermost first."""

NATURAL, THEN, ELSE = 0, 1, 2
"""What the flag of an If says: the branch of its condition, or one of the two."""


@dataclass(frozen=True)
class Switch:
    """An If with a flag.

    `taken` is the value of the main graph that says which branch ran; "" in a body, where an If may run often, or not
    at all. `within` are the flags of the Ifs around it, each with the branch that it stands in.
    """

    node: str
    taken: str
    within: Mapping[str, int]


def with_switches(model: ir.Model) -> dict[str, Switch]:
    """Give every If a flag: an input, NATURAL where it is not fed, that says which branch runs.

    Edits the model; the n-th If has the same flag in every copy. By flag.
    """
    found: dict[str, Switch] = {}
    if model.opset_imports.get("", 1) < _LEAST_OPSET:
        return found
    values = {name: np.asarray(value) for name, value in (("natural", NATURAL), ("then", THEN))}
    names = {node: f"branch.{number}.set" for number, (node, _) in enumerate(_branching(model.graph))}
    known = (
        {name: add_constant(model.graph, f"branch.{name}", array) for name, array in values.items()}
        if names
        else {}
    )
    for node, within in list(_branching(model.graph)):
        flag = add_constant(model.graph, names[node], np.asarray(NATURAL))
        model.graph.inputs.append(flag)
        taken = _which(node, flag, known["natural"], known["then"])
        shown = taken.name or "" if node.graph is model.graph else ""
        found[names[node]] = Switch(node.name or "If", shown, {names[one]: side for one, side in within})
    return found


def _which(node: ir.Node, flag: ir.Value, natural: ir.Value, then: ir.Value) -> ir.Value:
    """Whether the first branch runs, from the condition and the flag: it becomes the condition."""
    home = node.graph
    assert home is not None
    asked = ir.node("Equal", [flag, then])
    free = ir.node("Equal", [flag, natural])
    own = ir.node("And", [node.inputs[0], free.outputs[0]])
    taken = ir.node("Or", [own.outputs[0], asked.outputs[0]])
    for made, what in ((asked, "asked"), (free, "free"), (own, "own"), (taken, "taken")):
        made.outputs[0].name = f"{flag.name}.{what}"
        made.outputs[0].type = ir.TensorType(ir.DataType.BOOL)
        home.insert_before(node, made)
    node.replace_input_with(0, taken.outputs[0])
    return taken.outputs[0]


def _branching(graph: ir.Graph, within: tuple[tuple[ir.Node, int], ...] = ()) -> Iterator[Placed]:
    """The Ifs of a graph and of all graphs inside, outer ones first, each with those around it."""
    for node in graph:
        is_if = node.op_type == "If" and node.domain == ""
        if is_if:
            yield node, within
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                side = THEN if attribute.name == "then_branch" else ELSE
                yield from _branching(attribute.as_graph(), (*within, (node, side)) if is_if else within)


def in_full_precision(model: ir.Model) -> None:
    """Kernels that may round activations to 8 bits on the way (`accuracy_level` 4) are told not to.

    Such a kernel rounds by the largest entry of a block, which may be one that a mask hides: no two graphs agree then.
    """
    for node in model.graph.all_nodes():
        if node.attributes.get_int("accuracy_level", 0):
            node.attributes["accuracy_level"] = ir.AttrInt64("accuracy_level", 1)


def readied(model: ir.Model) -> bool:
    """Whether a proof runs another graph than this one, be anything removed or not."""
    return any(
        node.op_type == "If" or node.attributes.get_int("accuracy_level", 0)
        for node in model.graph.all_nodes()
    )
