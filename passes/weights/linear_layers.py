"""Where a model multiplies activations by constant weights: what quantization and patterns work on."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx_ir as ir

from sparsecc.graph.linear_layers import SINGLE, LinearLayer, added_bias, layer_of
from sparsecc.remarks import Remark


def constant_array(value: ir.Value) -> np.ndarray:
    """The numbers of a constant value. ValueError when it has none."""
    if value.const_value is None:
        raise ValueError(f"value '{value.name}' is not constant")
    return value.const_value.numpy()


def find_layers(
    model: ir.Model, types: Collection[ir.DataType] = SINGLE, *, in_bodies: bool = False
) -> tuple[list[LinearLayer], list[Remark]]:
    """All layers of the main graph, and of the bodies in it if asked for, whose weights have one of these types, in
    its order, and the other nodes of their operators, with the reason."""
    layers: list[LinearLayer] = []
    remarks: list[Remark] = []
    for node in model.graph.all_nodes() if in_bodies else model.graph:
        layer = layer_of(node, types)
        if isinstance(layer, LinearLayer):
            layers.append(layer)
        elif layer is not None:
            remarks.append(Remark(node.name or "", layer))
    return layers, remarks


def trailing_bias(node: ir.Node) -> tuple[ir.Value | None, ir.Value]:
    """The constant vector that alone is added to a MatMul's output, and the value that holds the sum."""
    output, weight = node.outputs[0], node.inputs[1]
    columns = weight.shape[-1] if weight is not None and weight.shape is not None else None
    added = added_bias(node, columns) if isinstance(columns, int) else None
    if added is None or constant_array(added[1]).ndim != 1:
        return None, output
    adder, bias = added
    return bias, adder.outputs[0]
