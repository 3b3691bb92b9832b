"""Move a per-channel scale from an activation into the weights that read it, exactly."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from sparsecc.graph.linear_layers import LinearLayer, is_float_constant
from sparsecc.ir.graph_editor import GraphEditor
from sparsecc.passes.weights.linear_layers import constant_array

SCALED = "_scaled"
"""Behind the name of a weight that took up a scale."""


def scale_inputs(model: ir.Model, readers: Sequence[LinearLayer], scale: np.ndarray) -> bool:
    """Divide the shared input of `readers` (Gemm, MatMul) by `scale` (k,), multiply their weights by it.

    The division goes into the LayerNormalization before when nothing else reads its output (True), else into
    a Mul of its own (False). The function of the model does not change.
    """
    editor = GraphEditor(model)
    value = readers[0].data
    for layer in readers:
        shape = (-1, 1) if layer.in_axis == 0 else (1, -1)
        scaled = editor.constant(f"{layer.weight.name}{SCALED}", layer.array() * scale.reshape(shape))
        layer.node.replace_input_with(1, scaled)
        layer.weight = scaled
    producer = value.producer()
    others = [node for node in value.consumers() if node not in {layer.node for layer in readers}]
    if producer is not None and not others and not value.is_graph_output() and _fold(editor, producer, scale):
        return True
    inverse = editor.constant(f"{value.name}_inverse_scale", (1 / scale).astype(np.float32))
    smooth = editor.add_behind(
        value, "Mul", [value, inverse], base=f"{value.name}_smooth", dtype=ir.DataType.FLOAT, like=value
    )
    for layer in readers:
        layer.node.replace_input_with(0, smooth)
        layer.data = smooth
    return False


def _fold(editor: GraphEditor, producer: ir.Node, scale: np.ndarray) -> bool:
    """Divide a LayerNormalization's scale and bias, if they are constant vectors of the right size."""
    if producer.op_type != "LayerNormalization":
        return False
    constants = [value for value in producer.inputs[1:3] if value is not None]
    if not all(
        is_float_constant(value) and constant_array(value).shape == scale.shape for value in constants
    ):
        return False
    for index, value in enumerate(constants, start=1):
        divided = editor.constant(f"{value.name}_divided", (constant_array(value) / scale).astype(np.float32))
        producer.replace_input_with(index, divided)
    return True
