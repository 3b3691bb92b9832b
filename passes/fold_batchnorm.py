"""Fold BatchNormalization into the convolution before it: fewer nodes, and one weight to quantize."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import onnx_ir as ir

from sparsecc.passes.base import Pass, PassContext, PassResult, Skip
from sparsecc.passes.quantize.editor import GraphEditor, prepare
from sparsecc.passes.quantize.sites import constant_array, float_attribute, int_attribute, is_float_constant

if TYPE_CHECKING:
    from sparsecc.plan import Plan


@dataclass(frozen=True)
class FoldBatchNorm(Pass):
    """Conv or ConvTranspose with a constant BatchNormalization behind it becomes the one convolution."""

    name: ClassVar[str] = "fold_batchnorm"

    def run(self, model: ir.Model, plan: Plan, context: PassContext) -> PassResult:
        """Fold in place; each BatchNormalization left has its reason in the result."""
        prepare(model)
        editor = GraphEditor(model)
        folded, skipped = 0, []
        for node in list(model.graph):
            if node.op_type != "BatchNormalization":
                continue
            reason = _why_not(node)
            if reason:
                skipped.append(Skip(node.name or "", reason))
            else:
                _fold(editor, node)
                folded += 1
        editor.finish()
        return PassResult({"folded": folded}, tuple(skipped))


def _why_not(node: ir.Node) -> str:
    data = node.inputs[0]
    producer = None if data is None else data.producer()
    if data is None or producer is None or producer.op_type not in ("Conv", "ConvTranspose"):
        return "no convolution comes before it"
    if len(data.uses()) != 1 or data.is_graph_output():
        return "the convolution's output is read elsewhere too"
    if int_attribute(node, "training_mode", 0):
        return "it is in training mode"
    if not all(is_float_constant(value) for value in node.inputs[1:5]):
        return "its statistics are not constants"
    if not all(value is None or is_float_constant(value) for value in producer.inputs[1:]):
        return "the convolution's weight is not a constant"
    return ""


def _fold(editor: GraphEditor, node: ir.Node) -> None:
    """W' = W g/s and b' = (b - mean) g/s + beta, in float64, with s the standard deviation."""
    data = node.inputs[0]
    assert data is not None
    conv = data.producer()
    assert conv is not None
    scale, shift, mean, variance = (_numbers(value) for value in node.inputs[1:5])
    factor = scale / np.sqrt(variance + float_attribute(node, "epsilon", 1e-5))
    weight = _numbers(conv.inputs[1])
    has_bias = len(conv.inputs) > 2 and conv.inputs[2] is not None
    bias = _numbers(conv.inputs[2]) if has_bias else np.zeros_like(mean)
    if conv.op_type == "Conv":
        folded = weight * factor.reshape(-1, *[1] * (weight.ndim - 1))
    else:
        group = int_attribute(conv, "group", 1)
        inputs, outputs, *kernel = weight.shape
        split = weight.reshape(group, inputs // group, outputs, *kernel)
        folded = (split * factor.reshape(group, 1, outputs, *[1] * len(kernel))).reshape(weight.shape)
    base = conv.inputs[1].name if conv.inputs[1] is not None else conv.name
    conv.replace_input_with(1, editor.constant(f"{base}_folded", folded.astype(np.float32)))
    new_bias = editor.constant(f"{base}_folded_bias", ((bias - mean) * factor + shift).astype(np.float32))
    if len(conv.inputs) < 3:
        conv.resize_inputs(3)
    conv.replace_input_with(2, new_bias)
    editor.replace_value(node.outputs[0], data)


def _numbers(value: ir.Value | None) -> np.ndarray:
    assert value is not None
    return constant_array(value).astype(np.float64)
