"""Weights that are stored in 8 bits though no kernel multiplies integers by them: files are smaller, results in float.

A transposed convolution loses no time by it. Recurrent operators restore their weights at every run, which costs where
sequences are short; LSTM has an integer kernel in ONNX Runtime, which needs no calibration.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import onnx_ir as ir

from sparsecc.graph.linear_layers import is_float_constant
from sparsecc.ir.graph_editor import GraphEditor
from sparsecc.passes.quantize.integer_lstm import lower_lstm, why_no_integer_lstm
from sparsecc.passes.quantize.spec import along, quantize_weight, weight_scale
from sparsecc.passes.weights.linear_layers import constant_array
from sparsecc.runtime.numerics import sqnr

OPERANDS = {"ConvTranspose": (1,), "LSTM": (1, 2), "GRU": (1, 2), "RNN": (1, 2)}
"""Operator -> its inputs that are weights. Axis 1 of each counts outputs (of a group), or gates' units."""
FREE = frozenset({"ConvTranspose"})
LEAST = 4096
"""Numbers of a node's weights under which scales and one more node are no gain."""


def stored_nodes(model: ir.Model, exclude: Collection[str]) -> list[ir.Node]:
    """The nodes of the main graph whose weights are worth it."""
    return [
        node
        for node in model.graph
        if node.op_type in OPERANDS and not node.domain and node.name not in exclude and _is_worth_it(node)
    ]


def _is_worth_it(node: ir.Node) -> bool:
    values = weights_of(node)
    return (
        all(map(is_float_constant, values)) and sum(constant_array(value).size for value in values) >= LEAST
    )


def weights_of(node: ir.Node) -> list[ir.Value]:
    """The operands that are stored."""
    values = (node.inputs[place] for place in OPERANDS[node.op_type])
    return [value for value in values if value is not None]


def noise_of(nodes: Sequence[ir.Node], limit: int) -> dict[str, float]:
    """Signal to noise of every weight in dB."""
    values = dict.fromkeys(value for node in nodes for value in weights_of(node))
    found = {}
    for value in values:
        weight = constant_array(value)
        scale = weight_scale(weight, 1, limit=limit)
        restored = quantize_weight(weight, scale, 1, limit=limit) * along(scale, 1, weight.ndim)
        found[value.name or ""] = round(sqnr(weight, restored), 2)
    return found


def store_weights(editor: GraphEditor, nodes: Sequence[ir.Node], limit: int, *, has_lstm: bool) -> None:
    """Put 8 bits in the place of the weights. `has_lstm` is whether the runtime knows DynamicQuantizeLSTM."""
    known: dict[ir.Value, ir.Value] = {}
    for node in nodes:
        if node.op_type == "LSTM" and has_lstm and not why_no_integer_lstm(node):
            lower_lstm(editor, node, limit)
            continue
        for place in OPERANDS[node.op_type]:
            value = node.inputs[place]
            assert value is not None
            if value not in known:
                known[value] = _restored(editor, value, limit)
            node.replace_input_with(place, known[value])


def _restored(editor: GraphEditor, value: ir.Value, limit: int) -> ir.Value:
    weight, name = constant_array(value), value.name or ""
    scale = weight_scale(weight, 1, limit=limit)
    stored = editor.constant(f"{name}_int8", quantize_weight(weight, scale, 1, limit=limit))
    operands = [stored, editor.constant(f"{name}_scale", scale), editor.zeros(scale.shape, np.int8)]
    return editor.add(
        "DequantizeLinear",
        operands,
        {"axis": 1},
        base=f"{name}_restored",
        dtype=ir.DataType.FLOAT,
        like=value,
    )
