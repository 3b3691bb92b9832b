"""Gemm's alpha and beta folded into its constants: integer and block kernels know neither."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from sparsecc.graph.linear_layers import SINGLE_OR_HALF, is_float_constant
from sparsecc.ir.graph_editor import GraphEditor
from sparsecc.passes.weights.linear_layers import constant_array


def fold_gemm_factors(model: ir.Model) -> int:
    """alpha (A B) + beta C becomes A (alpha B) + (beta C) where B and C are constants; how many did, in place."""
    editor, folded = GraphEditor(model), 0
    for node in list(model.graph):
        if node.op_type != "Gemm" or node.domain not in ("", "ai.onnx"):
            continue
        alpha, beta = (node.attributes.get_float(name, 1.0) for name in ("alpha", "beta"))
        has_bias = len(node.inputs) > 2 and node.inputs[2] is not None
        if (alpha, beta if has_bias else 1.0) == (1.0, 1.0) or not is_float_constant(
            node.inputs[1], SINGLE_OR_HALF
        ):
            continue
        if has_bias and beta != 1.0 and not is_float_constant(node.inputs[2], SINGLE_OR_HALF):
            continue
        for index, factor in ((1, alpha), (2, beta)) if has_bias else ((1, alpha),):
            value = node.inputs[index]
            if factor != 1.0 and value is not None:
                numbers = constant_array(value)
                scaled = (numbers.astype(np.float64) * factor).astype(numbers.dtype)
                node.replace_input_with(index, editor.constant(f"{value.name}_scaled", scaled))
        for name in ("alpha", "beta"):
            node.attributes.pop(name, None)
        folded += 1
    if folded:
        editor.finish()
    return folded
