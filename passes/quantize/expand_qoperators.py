"""Integer operators as the float operators between Quantize/DequantizeLinear that they stand for.

The forms are those of ONNX (QLinearConv, QLinearMatMul) and of ONNX Runtime's com.microsoft, whose documents give the
order of the operands; ONNX Runtime makes them of the pairs again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from sparsecc.ir.graph_editor import GraphEditor
from sparsecc.passes.weights.linear_layers import constant_array

Operand = tuple[ir.Value | None, ir.Value | None, ir.Value | None]
"""Integers, their scale, their zero point."""

UNARY = {
    "QLinearGlobalAveragePool": "GlobalAveragePool", "QLinearAveragePool": "AveragePool", "QLinearSigmoid": "Sigmoid",
    "QLinearLeakyRelu": "LeakyRelu",
}  # fmt: skip
BINARY = {"QLinearAdd": "Add", "QLinearMul": "Mul", "QLinearMatMul": "MatMul"}


def expand(model: ir.Model) -> int:
    """Write them so, in place; how many there were."""
    editor, count = GraphEditor(model), 0
    for node in list(model.graph):
        found = _FORMS.get(node.op_type)
        if found is not None and node.domain in ("", "ai.onnx", "com.microsoft"):
            count += found(editor, node)
    if count:
        editor.finish()
    return count


def is_expandable(node: ir.Node) -> bool:
    """Whether a node may be one of them."""
    return node.op_type in _FORMS


def _real(editor: GraphEditor, node: ir.Node, operand: Operand, axis: int | None = None) -> ir.Value:
    value, scale, zero = operand
    assert value is not None
    assert scale is not None
    attributes = {} if axis is None or _count(scale) == 1 else {"axis": axis}
    return editor.add(
        "DequantizeLinear", [value, scale, *([zero] if zero is not None else [])], attributes,
        base=f"{value.name}_restored", before=node, dtype=ir.DataType.FLOAT, like=value,
    )  # fmt: skip


def _count(scale: ir.Value) -> int:
    return 1 if scale.const_value is None else constant_array(scale).size


def _put(
    editor: GraphEditor,
    node: ir.Node,
    op_type: str,
    inputs: Sequence[ir.Value],
    result: tuple[ir.Value | None, ir.Value | None] | None,
    dropped: frozenset[str] = frozenset(),
    bias: ir.Value | None = None,
) -> bool:
    """The float operator in the place of a node; `result` is (scale, zero point) of its integers, None for floats."""
    old = node.outputs[0]
    attributes: Mapping[str, ir.Attr] = {
        name: attribute for name, attribute in node.attributes.items() if name not in dropped
    }
    base, float_ = f"{old.name}_real", ir.DataType.FLOAT
    value = editor.add(op_type, inputs, base=base, before=node, dtype=float_, like=old)
    made = value.producer()
    assert made is not None
    for name, attribute in attributes.items():
        made.attributes[name] = attribute
    if bias is not None:
        value = editor.add("Add", [value, bias], base=f"{base}_biased", before=node, dtype=float_, like=old)
    if result is not None:
        scale, zero = result
        assert scale is not None
        value = editor.add(
            "QuantizeLinear", [value, scale, *([zero] if zero is not None else [])], base=f"{old.name}_levels",
            before=node, dtype=old.dtype or (zero.dtype if zero is not None else None) or ir.DataType.UINT8, like=old,
        )  # fmt: skip
    editor.replace_value(old, value)
    return True


def _inputs(node: ir.Node, number: int) -> list[ir.Value | None]:
    return [*node.inputs, *[None] * (number - len(node.inputs))]


def _conv(editor: GraphEditor, node: ir.Node) -> bool:
    x, xs, xz, w, ws, wz, ys, yz, bias = _inputs(node, 9)
    if node.attributes.get_int("channels_last", 0):
        return False
    operands = [_real(editor, node, (x, xs, xz)), _real(editor, node, (w, ws, wz), 0)]
    if bias is not None:
        if (step := _product(xs, ws)) is None:
            return False
        operands.append(_real_bias(editor, node, bias, step))
    return _put(editor, node, "Conv", operands, (ys, yz), frozenset({"channels_last"}))


def _gemm(editor: GraphEditor, node: ir.Node) -> bool:
    a, as_, az, b, bs, bz, bias, ys, yz = _inputs(node, 9)
    axis = 0 if node.attributes.get_int("transB", 0) else 1
    operands = [_real(editor, node, (a, as_, az)), _real(editor, node, (b, bs, bz), axis)]
    if bias is not None:
        if (step := _product(as_, bs)) is None:
            return False
        operands.append(_real_bias(editor, node, bias, step * node.attributes.get_float("alpha", 1.0)))
    return _put(editor, node, "Gemm", operands, None if ys is None else (ys, yz))


def _real_bias(editor: GraphEditor, node: ir.Node, bias: ir.Value, step: np.ndarray) -> ir.Value:
    scale = editor.constant(f"{bias.name}_scale", np.asarray(step, np.float32))
    return _real(editor, node, (bias, scale, None), 0)


def _product(first: ir.Value | None, second: ir.Value | None) -> np.ndarray | None:
    """What two constant scales multiply to."""
    if first is None or second is None or first.const_value is None or second.const_value is None:
        return None
    step: np.ndarray = constant_array(first).reshape(()) * constant_array(second)
    return step.reshape(()) if step.size == 1 else step.reshape(-1)


def _unary(editor: GraphEditor, node: ir.Node) -> bool:
    if node.attributes.get_int("channels_last", 0):
        return False
    x, xs, xz, ys, yz = _inputs(node, 5)
    real = _real(editor, node, (x, xs, xz))
    return _put(editor, node, UNARY[node.op_type], [real], (ys, yz), frozenset({"channels_last"}))


def _binary(editor: GraphEditor, node: ir.Node) -> bool:
    a, as_, az, b, bs, bz, ys, yz = _inputs(node, 8)
    columns = -1 if node.op_type == "QLinearMatMul" else None
    operands = [_real(editor, node, (a, as_, az)), _real(editor, node, (b, bs, bz), columns)]
    return _put(editor, node, BINARY[node.op_type], operands, (ys, yz))


def _concat(editor: GraphEditor, node: ir.Node) -> bool:
    ys, yz, *rest = node.inputs
    parts = [_real(editor, node, (rest[i], rest[i + 1], rest[i + 2])) for i in range(0, len(rest), 3)]
    return _put(editor, node, "Concat", parts, (ys, yz))


def _to_float(editor: GraphEditor, node: ir.Node) -> bool:
    a, b, as_, bs, az, bz, bias = _inputs(node, 7)
    operands = [_real(editor, node, (a, as_, az)), _real(editor, node, (b, bs, bz), -1)]
    return _put(editor, node, "MatMul", operands, None, bias=bias)


_FORMS: Mapping[str, Callable[[GraphEditor, ir.Node], bool]] = {
    "QLinearConv": _conv,
    "QGemm": _gemm,
    "QLinearConcat": _concat,
    "MatMulIntegerToFloat": _to_float,
    **dict.fromkeys(UNARY, _unary),
    **dict.fromkeys(BINARY, _binary),
}
