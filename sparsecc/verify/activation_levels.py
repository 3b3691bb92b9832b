"""A float graph whose activations stand on the levels of their ranges: what these alone do to its outputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx_ir as ir

from sparsecc.ir.graph_editor import GraphEditor
from sparsecc.passes.quantize.spec import scale_of_range

_LEVELS = {"int8": ir.DataType.INT8, "uint8": ir.DataType.UINT8}
_ANY_OPSET = "com.microsoft"
"""Where ONNX Runtime has the two operators whatever the model's opset is."""


def round_activations(model: ir.Model, quantization: Mapping[str, Any]) -> int:
    """Put every activation that has a range in 8 bits on the levels of that range, in bodies too; their number."""
    editor, number = GraphEditor(model), 0
    inputs = [value for graph in (model.graph, *model.graph.subgraphs()) for value in graph.inputs]
    made = [value for node in model.graph.all_nodes() for value in node.outputs]
    for value in (*inputs, *made):
        name = value.name or ""
        how = quantization.get(name, {})
        if how.get("role") != "activation" or how["type"] not in _LEVELS or "low" not in how:
            continue
        levels = scale_of_range(how["low"], how["high"], how["type"], symmetric=how["symmetric"])
        step, zero = (
            editor.constant(f"{name}_step", levels.scale),
            editor.constant(f"{name}_zero", levels.zero_point),
        )
        uses = tuple(value.uses())
        whole = editor.add_behind(
            value, "QuantizeLinear", [value, step, zero], base=f"{name}_levels", domain=_ANY_OPSET,
            dtype=_LEVELS[how["type"]],
        )  # fmt: skip
        restored = editor.add_behind(
            whole, "DequantizeLinear", [whole, step, zero], base=f"{name}_rounded", domain=_ANY_OPSET,
            dtype=ir.DataType.FLOAT,
        )  # fmt: skip
        for node, place in uses:
            node.replace_input_with(place, restored)
        number += 1
    editor.finish()
    return number
