"""Zeros around what a maximum is taken of, kept from a fusion that loses them.

A MaxPool's own padding never wins; a Pad's zeros win over negative values. ONNX Runtime's optimizer moves a Pad of
zeros into the MaxPool behind it all the same (its PadFusion; so does 1.31.1), and gives other numbers than the model
says. A number next to zero is no zero to it.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from sparsecc.ir.constants import add_constant
from sparsecc.rules import Trait, traits_of

_NEVER_NEGATIVE = frozenset({"Abs", "Exp", "HardSigmoid", "Relu", "Sigmoid", "Softplus", "Sqrt"})
"""Behind these a zero is no more than what the padding of a MaxPool is."""
_FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16})
TINY = 2.0**-24
"""The smallest number of float16 that is not zero: it stays one when the types change later."""
FAR = 256
"""How many nodes back it is looked for what a value is."""


def guard_zeros(model: ir.Model) -> list[str]:
    """Pad with `TINY` instead of zero before a MaxPool, in place; the names of those Pads.

    Left alone are integers, which have no such number, and values that cannot be negative, where the fusion is right.
    """
    return [node.name or "" for node in model.graph.all_nodes() if _is_misread(node) and _guard(node, model)]


def _is_misread(node: ir.Node) -> bool:
    if node.op_type != "Pad" or node.domain or node.attributes.get_string("mode", "constant") != "constant":
        return False
    source = node.inputs[0].producer() if node.inputs[0] is not None else None
    if source is not None and source.op_type in _NEVER_NEGATIVE:
        return False
    return any(use.node.op_type == "MaxPool" and not use.node.domain for use in node.outputs[0].uses())


def _guard(node: ir.Node, model: ir.Model) -> bool:
    """Change the value of a Pad if it is zero; False where it is another, or of unknown type."""
    if model.opset_imports.get("", 1) < 11:
        is_zero = node.attributes.get_float("value", 0.0) == 0
        if is_zero:
            node.attributes["value"] = ir.AttrFloat32("value", TINY)
        return is_zero
    given = node.inputs[2] if len(node.inputs) > 2 else None
    dtype = _type_of(node.inputs[0])
    if dtype is None or (given is not None and not _is_zero(given)):
        return False
    tiny = np.array(TINY, dtype=dtype.numpy())
    node.resize_inputs(max(3, len(node.inputs)))
    node.replace_input_with(2, add_constant(model.graph, f"{node.name}.tiny", tiny))
    return True


def _is_zero(value: ir.Value) -> bool:
    """Whether a value is a constant zero, perhaps of another type first."""
    for _ in range(FAR):
        node = value.producer()
        if node is None or not traits_of(node) & Trait.MOVES or node.inputs[0] is None:
            break
        value = node.inputs[0]
    tensor = value.const_value
    return tensor is not None and not value.is_graph_input() and tensor.size == 1 and not tensor.numpy().any()


def _type_of(value: ir.Value | None) -> ir.DataType | None:
    """The type of a value if it is one of these floats, of what it is made of where the file does not say."""
    for _ in range(FAR):
        if value is None or value.dtype is not None:
            break
        node = value.producer()
        if node is None or node.domain:
            return None
        if node.op_type == "Cast":
            wanted = node.attributes.get_int("to", 0)
            return next((dtype for dtype in _FLOATS if dtype.value == wanted), None)
        value = node.inputs[1 if node.op_type in ("CastLike", "DequantizeLinear", "Where") else 0]
    return value.dtype if value is not None and value.dtype in _FLOATS else None
