"""Products of two activations, as attention has them: which a model has, and how much each number is worth in them."""

from __future__ import annotations

import onnx_ir as ir

from sparsecc.graph.linear_layers import ACTIVATIONS, layer_of
from sparsecc.rules import shapes_of
from sparsecc.rules.value_types import value_types
from sparsecc.shapes.infer import Shapes, infer


def activation_products(model: ir.Model) -> dict[str, float]:
    """Node -> multiply-accumulates per number that it reads or gives, 0 where its sizes are dynamic, of every float
    MatMul of two activations of two axes and more."""
    nodes = [node for node in model.graph if layer_of(node) == ACTIVATIONS and node.op_type == "MatMul"]
    if not nodes:
        return {}
    types, shapes = value_types(model), infer(model, shapes_of)
    floats = [node for node in nodes if types.get(node.outputs[0]) == ir.DataType.FLOAT]
    found = {node.name or "": _density(node, shapes) for node in floats}
    return {name: density for name, density in found.items() if density is not None}


def _density(node: ir.Node, shapes: Shapes) -> float | None:
    left, right = node.inputs[:2]
    if left is None or right is None or left.const_value is not None:
        return None
    before, after = shapes.of(left), shapes.of(right)
    if before is None or after is None or min(len(before), len(after)) < 2:
        return None
    rows, inner, columns = before[-2], before[-1], after[-1]
    if not (isinstance(rows, int) and isinstance(inner, int) and isinstance(columns, int)):
        return 0.0
    moved = rows * inner + inner * columns + rows * columns
    return rows * inner * columns / max(1, moved)
