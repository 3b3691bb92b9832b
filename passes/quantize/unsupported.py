"""Operators with weights that stay in float because no kernel or no lowering takes them, said node by node."""

from __future__ import annotations

from collections.abc import Collection

import onnx_ir as ir

from sparsecc.remarks import Remark

_RECURRENT = "no integer kernel takes it, or its weights are few (--quantize int8-dynamic takes any LSTM)"
REASONS = {
    "ConvTranspose": "transposed convolution: ONNX Runtime has no integer kernel",
    "LSTM": f"recurrent: {_RECURRENT}",
    "GRU": f"recurrent: {_RECURRENT}",
    "RNN": f"recurrent: {_RECURRENT}",
}


def without_kernel(model: ir.Model, taken: Collection[str]) -> list[Remark]:
    """The nodes of the main graph that REASONS names, save for the operators in `taken`."""
    return [
        Remark(node.name or "", REASONS[node.op_type])
        for node in model.graph
        if node.op_type in REASONS and node.op_type not in taken and node.domain in ("", "ai.onnx")
    ]
