"""Inputs of fused mixtures of experts, kept alive until the mixture has been computed.

ONNX Runtime lets com.microsoft.MoE write its output over its first input, and its CPU kernel clears the output before
it has read that input: where the mixture is the last to read a value that the graph computes, every output is zero
(1.31.1, at every level of optimization). A reader behind the mixture keeps the two apart: `Where(false, input,
output)` is one that changes nothing.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from sparsecc.ir.constants import add_constant


def guard_mixtures(model: ir.Model) -> list[str]:
    """Give the first input of every mixture a reader behind it, in place; the names of those mixtures."""
    return [
        node.name or "" for node in list(model.graph.all_nodes()) if _is_cleared(node) and _guard(node, model)
    ]


def _is_cleared(node: ir.Node) -> bool:
    if (node.domain, node.op_type) != ("com.microsoft", "MoE") or node.inputs[0] is None:
        return False
    given = node.inputs[0]
    return given.producer() is not None and not given.is_graph_output()


def _guard(node: ir.Node, model: ir.Model) -> bool:
    """Put the reader in; False where one stands there already."""
    given, made = node.inputs[0], node.outputs[0]
    if any(use.node.op_type == "Where" and use.node.inputs[1] is given for use in made.uses()):
        return False
    assert node.graph is not None
    never = add_constant(model.graph, f"{node.name}.never", np.array(False))
    kept = ir.node("Where", [never, given, made], name=f"{node.name}.kept")
    output = kept.outputs[0]
    output.type, output.shape = made.type, made.shape
    made.replace_all_uses_with(output, replace_graph_outputs=True)
    kept.replace_input_with(2, made)
    output.name, made.name = made.name, f"{made.name}.cleared"
    node.graph.insert_after(node, kept)
    return True
