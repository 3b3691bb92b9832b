"""ONNX Runtime's own integer matrix product with float result: it keeps the bias and any number of axes.

From a plain Q/DQ graph ONNX Runtime first fuses MatMul and Add into a float Gemm and then finds no integers
to use: 0 of 72 products of BERT-base in int8, at twice the time of fp32.
"""

from __future__ import annotations

import onnx_ir as ir

from sparsecc.ir.graph_editor import GraphEditor
from sparsecc.passes.weights.linear_layers import trailing_bias


def fuse_integer_matmul(editor: GraphEditor, node: ir.Node) -> bool:
    """Turn DQ, DQ -> MatMul (-> Add of a bias) into one MatMulIntegerToFloat; whether it was possible."""
    data, weight = (value.producer() if value is not None else None for value in node.inputs[:2])
    if data is None or weight is None or {data.op_type, weight.op_type} != {"DequantizeLinear"}:
        return False
    bias, result = trailing_bias(node)
    inputs = [
        data.inputs[0],
        weight.inputs[0],
        data.inputs[1],
        weight.inputs[1],
        data.inputs[2],
        weight.inputs[2],
    ]
    product = editor.add(
        "MatMulIntegerToFloat", inputs if bias is None else [*inputs, bias],
        base=f"{node.name}_int8", before=node, domain="com.microsoft", dtype=ir.DataType.FLOAT, like=result,
    )  # fmt: skip
    editor.stand_in(result, product)
    return True
