"""Values that are always the same, although nodes compute them: exporters slice and join recurrent weights so."""

from __future__ import annotations

from typing import cast

import numpy as np
import onnx_ir as ir
from onnx_ir import serde

MOVES = frozenset(
    {"Identity", "Slice", "Concat", "Split", "Unsqueeze", "Squeeze", "Transpose", "Reshape", "Gather"}
)
"""Operators that only move numbers: what they give is computed exactly by any runtime."""


def fixed_array(value: ir.Value | None) -> np.ndarray | None:
    """The numbers of a value that depends on no input, over operators that only move numbers; None otherwise."""
    if value is None:
        return None
    nodes: list[ir.Node] = []
    constants: dict[str, ir.TensorProtocol] = {}
    pending = [value]
    while pending:
        one = pending.pop()
        producer = one.producer()
        if one.const_value is not None and not one.is_graph_input():
            constants[one.name or ""] = one.const_value
        elif producer is None or producer.op_type not in MOVES or producer.domain:
            return None
        elif producer not in nodes:
            nodes.append(producer)
            pending.extend(operand for operand in producer.inputs if operand is not None)
    return _computed(value, nodes, constants) if nodes else constants[value.name or ""].numpy()


def _computed(value: ir.Value, nodes: list[ir.Node], constants: dict[str, ir.TensorProtocol]) -> np.ndarray:
    import onnx
    from onnx.reference import ReferenceEvaluator

    graph = nodes[0].graph
    assert isinstance(graph, ir.Graph)
    chosen = [serde.serialize_node(node) for node in graph if node in nodes]
    stored = [onnx.numpy_helper.from_array(tensor.numpy(), name) for name, tensor in constants.items()]
    output = onnx.helper.make_tensor_value_info(value.name or "", onnx.TensorProto.FLOAT, None)
    made = onnx.helper.make_graph(chosen, "fixed", [], [output], stored)
    opset = onnx.helper.make_opsetid("", graph.opset_imports.get("", 18))
    run = ReferenceEvaluator(onnx.helper.make_model(made, opset_imports=[opset])).run
    found = cast("list[np.ndarray]", run(None, {}))
    return np.asarray(found[0])
