"""Biases of zeros for fused attentions without one.

ONNX Runtime's CPU kernel of com.microsoft.Attention reads its bias though the operator may be without one, and the
process dies (1.31.1): so does every encoder of onnxruntime-genai's Whisper. A bias of zeros is what none stands for.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from sparsecc.ir.constants import add_constant
from sparsecc.ir.dtypes import FLOATS

BIAS = 2


def give_biases(model: ir.Model) -> list[str]:
    """Give every such attention a bias, in place; their names."""
    found = []
    for node in model.graph.all_nodes():
        weight = node.inputs[1] if len(node.inputs) > 1 else None
        lacks = len(node.inputs) <= BIAS or node.inputs[BIAS] is None
        if (node.domain, node.op_type) != ("com.microsoft", "Attention") or not lacks or weight is None:
            continue
        tensor = weight.const_value
        if tensor is None or len(tensor.shape) != 2 or tensor.dtype not in FLOATS:
            continue
        if len(node.inputs) <= BIAS:
            node.resize_inputs(BIAS + 1)
        zeros = np.zeros(int(tensor.shape[1]), dtype=tensor.dtype.numpy())  # type: ignore[arg-type]
        node.replace_input_with(BIAS, add_constant(model.graph, f"{node.name}.zero_bias", zeros))
        found.append(node.name or "")
    return found
