"""A graph made ready for a proof: branches that a flag turns, kernels that round nothing on the way."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from sparsecc.ir.constants import add_constant

_LEAST_OPSET = 7
"""Before, Xor did not broadcast."""


def with_switches(model: ir.Model) -> dict[str, str]:
    """Give every If of the main graph a flag, an input that is False where it is not fed and that turns the branch.

    Edits the model; the n-th If has the same flag in every copy. Flag -> the value that says which branch ran.
    """
    found = {}
    graph = model.graph
    if model.opset_imports.get("", 1) < _LEAST_OPSET:
        return {}
    branching = [node for node in graph if node.op_type == "If" and node.domain == ""]
    for number, node in enumerate(branching):
        condition = node.inputs[0]
        assert condition is not None
        flag = add_constant(graph, f"branch.{number}.turned", np.asarray(False))
        graph.inputs.append(flag)
        taken = ir.node("Xor", [condition, flag])
        taken.outputs[0].name = f"branch.{number}.taken"
        taken.outputs[0].type = ir.TensorType(ir.DataType.BOOL)
        graph.insert_before(node, taken)
        node.replace_input_with(0, taken.outputs[0])
        found[flag.name or ""] = taken.outputs[0].name
    return found


def in_full_precision(model: ir.Model) -> None:
    """Kernels that may round activations to 8 bits on the way (`accuracy_level` 4) are told not to.

    Such a kernel rounds by the largest entry of a block, which may be one that a mask hides: no two graphs agree then.
    """
    for node in model.graph.all_nodes():
        if node.attributes.get_int("accuracy_level", 0):
            node.attributes["accuracy_level"] = ir.AttrInt64("accuracy_level", 1)
