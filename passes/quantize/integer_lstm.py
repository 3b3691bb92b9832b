"""ONNX Runtime's LSTM on int8 weights, whose activations are quantized as they come: DynamicQuantizeLSTM."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from sparsecc.ir.graph_editor import GraphEditor, graph_of
from sparsecc.passes.quantize.constant_values import fixed_array
from sparsecc.runtime.numerics import sqnr

_OPERANDS = 8
"""Inputs of LSTM: X, W, R, B, sequence_lens, initial_h, initial_c, P."""


def why_no_integer_lstm(node: ir.Node) -> str:
    """What keeps an LSTM in float, or nothing."""
    weights = [fixed_array(value) for value in node.inputs[1:3]]
    if not all(weight is not None and weight.dtype == np.float32 for weight in weights):
        return "its weights are not fixed float32 numbers"
    if node.attributes.get_int("layout", 0):
        return "layout 1: ONNX Runtime's integer LSTM has the batch second"
    return ""


def lower_lstm(editor: GraphEditor, node: ir.Node, limit: int) -> dict[str, float]:
    """Put DynamicQuantizeLSTM in the place of an LSTM; the signal to noise of its two weights in dB.

    Weights (directions, 4 * hidden, inputs) are stored transposed, with a scale per direction and gate unit.
    """
    noise: dict[str, float] = {}
    stored = [_store(editor, value, limit, noise) for value in node.inputs[1:3] if value is not None]
    operands = [*node.inputs, *[None] * (_OPERANDS - len(node.inputs))]
    operands[1:3] = [levels for levels, _, _ in stored]
    parameters = [value for _, scale, zero in stored for value in (scale, zero)]
    outputs = [
        ir.Value(name=editor.fresh(f"{value.name}_int8"), type=value.type, shape=value.shape)
        for value in node.outputs
    ]
    attributes = [attribute for attribute in node.attributes.values() if attribute.name != "layout"]
    lowered = ir.Node(
        "com.microsoft", "DynamicQuantizeLSTM", [*operands, *parameters], attributes,
        outputs=outputs, name=editor.fresh(f"{node.name}_int8"),
    )  # fmt: skip
    graph_of(node).insert_before(node, lowered)
    editor.model.opset_imports.setdefault("com.microsoft", 1)
    for old, new in zip(node.outputs, outputs, strict=True):
        editor.replace_value(old, new)
    return noise


def _store(
    editor: GraphEditor, value: ir.Value, limit: int, noise: dict[str, float]
) -> tuple[ir.Value, ir.Value, ir.Value]:
    """(int8 weight (directions, inputs, 4 * hidden), scale and zero point (directions, 4 * hidden))."""
    name, weight = value.name or "", fixed_array(value)
    assert weight is not None
    largest = np.abs(weight).max(axis=2)
    scale = np.where(largest > 0, largest / limit, 1.0).astype(np.float32)
    levels = np.rint(weight / scale[:, :, None]).astype(np.int8)
    noise[name] = round(sqnr(weight, levels * scale[:, :, None]), 2)
    return (
        editor.constant(f"{name}_int8", levels.transpose(0, 2, 1)),
        editor.constant(f"{name}_scale", scale),
        editor.zeros(scale.shape, np.int8),
    )
