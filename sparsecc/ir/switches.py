"""A graph made ready for a proof: branches that a flag turns, kernels that round nothing on the way."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from sparsecc.ir.constants import add_constant

_LEAST_OPSET = 7
"""Before, Xor did not broadcast."""


@dataclass(frozen=True)
class Switch:
    """An If with a flag. `taken` is the value of the main graph that says which branch ran; "" in a body, where each
    round of a loop may take another."""

    node: str
    taken: str


def with_switches(model: ir.Model) -> dict[str, Switch]:
    """Give every If of the main graph, and of the bodies of loops, a flag: an input, False where it is not fed, that
    turns the branch.

    Edits the model; the n-th If has the same flag in every copy. By flag. An If within a branch has none: it may not
    run at all.
    """
    found = {}
    graph = model.graph
    if model.opset_imports.get("", 1) < _LEAST_OPSET:
        return {}
    for number, node in enumerate(list(_branching(graph))):
        condition, home = node.inputs[0], node.graph
        assert condition is not None
        assert home is not None
        flag = add_constant(graph, f"branch.{number}.turned", np.asarray(False))
        graph.inputs.append(flag)
        taken = ir.node("Xor", [condition, flag])
        taken.outputs[0].name = f"branch.{number}.taken"
        taken.outputs[0].type = ir.TensorType(ir.DataType.BOOL)
        home.insert_before(node, taken)
        node.replace_input_with(0, taken.outputs[0])
        shown = f"branch.{number}.taken" if home is graph else ""
        found[flag.name or ""] = Switch(node.name or "If", shown)
    return found


def _branching(graph: ir.Graph) -> Iterator[ir.Node]:
    """The Ifs of a graph and of the bodies of its loops."""
    for node in graph:
        if node.op_type == "If" and node.domain == "":
            yield node
            continue
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                yield from _branching(attribute.as_graph())


def in_full_precision(model: ir.Model) -> None:
    """Kernels that may round activations to 8 bits on the way (`accuracy_level` 4) are told not to.

    Such a kernel rounds by the largest entry of a block, which may be one that a mask hides: no two graphs agree then.
    """
    for node in model.graph.all_nodes():
        if node.attributes.get_int("accuracy_level", 0):
            node.attributes["accuracy_level"] = ir.AttrInt64("accuracy_level", 1)
