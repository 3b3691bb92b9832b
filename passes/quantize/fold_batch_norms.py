"""Batch norms folded into the convolutions before them: between 8-bit layers they would work in float."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from sparsecc.graph.linear_layers import is_float_constant
from sparsecc.ir.graph_editor import GraphEditor
from sparsecc.passes.weights.linear_layers import constant_array
from sparsecc.remarks import Remark


def fold_batch_norms(model: ir.Model) -> tuple[int, list[Remark]]:
    """Conv or ConvTranspose with a constant BatchNormalization behind it becomes the one convolution, in place.

    How many, and why the others behind convolutions stay.
    """
    editor, folded, left = GraphEditor(model), 0, []
    for node in list(model.graph):
        if node.op_type != "BatchNormalization" or node.domain or not _is_behind_convolution(node):
            continue
        if reason := _why_not(node):
            left.append(Remark(node.name or "", f"a batch norm that stays in float: {reason}"))
        else:
            _fold(editor, node)
            folded += 1
    if folded:
        editor.finish()
    return folded, left


def _is_behind_convolution(node: ir.Node) -> bool:
    producer = node.inputs[0].producer() if node.inputs[0] is not None else None
    return producer is not None and producer.op_type in ("Conv", "ConvTranspose") and not producer.domain


def _why_not(node: ir.Node) -> str:
    data = node.inputs[0]
    assert data is not None
    producer = data.producer()
    assert producer is not None
    if len(data.uses()) != 1 or data.is_graph_output():
        return "the convolution's output is read elsewhere too"
    if node.attributes.get_int("training_mode", 0):
        return "it is in training mode"
    if not all(is_float_constant(value) for value in node.inputs[1:5]):
        return "its statistics are not float32 constants"
    if not all(value is None or is_float_constant(value) for value in producer.inputs[1:]):
        return "the convolution's weight is not a float32 constant"
    return ""


def _fold(editor: GraphEditor, node: ir.Node) -> None:
    """W' = W g/s and b' = (b - mean) g/s + beta, in float64, with s the standard deviation."""
    data = node.inputs[0]
    assert data is not None
    conv = data.producer()
    assert conv is not None
    scale, shift, mean, variance = (_numbers(value) for value in node.inputs[1:5])
    factor = scale / np.sqrt(variance + node.attributes.get_float("epsilon", 1e-5))
    weight = _numbers(conv.inputs[1])
    has_bias = len(conv.inputs) > 2 and conv.inputs[2] is not None
    bias = _numbers(conv.inputs[2]) if has_bias else np.zeros_like(mean)
    if conv.op_type == "Conv":
        folded = weight * factor.reshape(-1, *[1] * (weight.ndim - 1))
    else:
        group = conv.attributes.get_int("group", 1)
        inputs, outputs, *kernel = weight.shape
        split = weight.reshape(group, inputs // group, outputs, *kernel)
        folded = (split * factor.reshape(group, 1, outputs, *[1] * len(kernel))).reshape(weight.shape)
    _put(editor, conv, 1, folded, f"{conv.name}_weight")
    _put(editor, conv, 2, (bias - mean) * factor + shift, f"{conv.name}_bias")
    editor.replace_value(node.outputs[0], data)


def _put(editor: GraphEditor, conv: ir.Node, operand: int, array: np.ndarray, base: str) -> None:
    """A new constant; under the old name where nothing else reads the old one."""
    single = array.astype(np.float32)
    old = conv.inputs[operand] if operand < len(conv.inputs) else None
    if old is not None and len(old.uses()) == 1 and not old.is_graph_output():
        old.const_value = ir.tensor(single, name=old.name)
        return
    conv.resize_inputs(max(operand + 1, len(conv.inputs)))
    conv.replace_input_with(operand, editor.constant(base, single))


def _numbers(value: ir.Value | None) -> np.ndarray:
    assert value is not None
    return constant_array(value).astype(np.float64)
