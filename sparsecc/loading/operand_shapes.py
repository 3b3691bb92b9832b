"""Attributes that no kernel can obey: windows that do not fit their weights, reshapes to another size. One
row of `CHECKS` an operator; a check speaks only of what the file itself says for certain."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx

from sparsecc.loading.scopes import Room

Dims = list[int | None] | None
Attributes = dict[str, Any]
_SHAPE_ELEMENTS = 64


def complaint(room: Room, node: onnx.NodeProto) -> str | None:
    """What is wrong with the node in one clause, None when nothing is."""
    if node.domain not in ("", "ai.onnx") or node.op_type not in CHECKS:
        return None
    plain = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute if not a.ref_attr_name}
    return CHECKS[node.op_type](room, node, plain)


def _dims(room: Room, node: onnx.NodeProto, index: int) -> Dims:
    if index >= len(node.input):
        return None
    name = node.input[index]
    tensor = room.constants.get(name)
    return list(tensor.dims) if tensor is not None else room.shapes.get(name)


def _window(room: Room, node: onnx.NodeProto, attributes: Attributes) -> str | None:
    for name, least in (("kernel_shape", 1), ("strides", 1), ("dilations", 1), ("pads", 0)):
        if any(value < least for value in attributes.get(name, ())):
            return f"{name} {_shown(attributes[name])} must be at least {least}"
    lengths = {len(attributes[n]) for n in ("kernel_shape", "strides", "dilations") if attributes.get(n)}
    if attributes.get("pads"):
        lengths.add(-(-len(attributes["pads"]) // 2))
    weight = _dims(room, node, 1) if node.op_type.startswith("Conv") else None
    if weight is not None:
        lengths.add(len(weight) - 2)
    if len(lengths) > 1:
        return "kernel_shape, strides, dilations, pads and weight are of different ranks"
    return None


def _conv(room: Room, node: onnx.NodeProto, attributes: Attributes) -> str | None:
    group = attributes.get("group", 1)
    if group < 1:
        return f"group {group} must be at least 1"
    weight = _dims(room, node, 1)
    if weight is not None:
        if len(weight) < 3:
            return f"the weight has {len(weight)} axes, a convolution needs at least 3"
        kernel = attributes.get("kernel_shape") or weight[2:]
        if list(kernel) != weight[2:]:
            return f"kernel_shape {_shown(kernel)} is not the weight's {_shown(weight[2:])}"
        if wrong := _channels(node.op_type, weight, _dims(room, node, 0), group):
            return wrong
    return _window(room, node, attributes)


def _channels(op_type: str, weight: list[int | None], data: Dims, group: int) -> str | None:
    """Conv weights are (out, in/group, *kernel), those of ConvTranspose (in, out/group, *kernel)."""
    first, second = weight[0], weight[1]
    if first is not None and first % group:
        return f"{first} channels are not divisible by group {group}"
    wanted = first if op_type == "ConvTranspose" else None if second is None else second * group
    if data is not None and len(data) > 1 and None not in (data[1], wanted) and data[1] != wanted:
        return f"the input has {data[1]} channels where the weight needs {wanted}"
    return None


def _reshape(room: Room, node: onnx.NodeProto, attributes: Attributes) -> str | None:
    target = _integers(room, node, 1) if len(node.input) > 1 else list(attributes.get("shape", ()))
    if target is None:
        return None
    if any(size < -1 for size in target) or target.count(-1) > 1:
        return f"the target shape {_shown(target)} has sizes below -1, or -1 twice"
    data = _dims(room, node, 0)
    if data is None:
        return None
    if not attributes.get("allowzero", 0):
        if any(size == 0 and axis >= len(data) for axis, size in enumerate(target)):
            return f"the target shape {_shown(target)} copies an axis that the input does not have"
        target = [data[axis] if size == 0 else size for axis, size in enumerate(target)]
    if None in data or None in target:
        return None
    have, want = math.prod(d or 0 for d in data), math.prod(size for size in target if size != -1)
    fits = have == want if -1 not in target else want != 0 and have % want == 0
    return None if fits else f"{have} elements cannot take the shape {_shown(target)}"


def _einsum(room: Room, node: onnx.NodeProto, attributes: Attributes) -> str | None:
    equation = bytes(attributes.get("equation", b"")).decode("utf-8", "replace").replace(" ", "")
    left, _, right = equation.partition("->")
    terms = left.split(",")
    if len(terms) != len(node.input):
        return f"the equation has {len(terms)} terms for {len(node.input)} inputs"
    for term in [*terms, right]:
        letters = term.replace("...", "", 1)
        if letters and not (letters.isascii() and letters.isalpha()):
            return "a term of the equation has more than letters and one ellipsis"
    return None


def _transpose(room: Room, node: onnx.NodeProto, attributes: Attributes) -> str | None:
    order = list(attributes.get("perm", ()))
    if order and sorted(order) != list(range(len(order))):
        return f"perm {_shown(order)} is not a permutation"
    return None


def _integers(room: Room, node: onnx.NodeProto, index: int) -> list[int] | None:
    """The values of a small constant int64 input that is stored in the model file."""
    tensor = room.constants.get(node.input[index])
    if tensor is None or tensor.data_type != onnx.TensorProto.INT64:
        return None
    if tensor.data_location == onnx.TensorProto.EXTERNAL or math.prod(tensor.dims) > _SHAPE_ELEMENTS:
        return None
    if tensor.HasField("raw_data"):
        return [int(v) for v in np.frombuffer(tensor.raw_data, "<i8")]
    return [int(v) for v in tensor.int64_data]


def _shown(values: Any) -> str:
    shown = ", ".join(str(v) for v in list(values)[:8])
    return f"[{shown}{', ...' if len(values) > 8 else ''}]"


CHECKS: dict[str, Callable[[Room, onnx.NodeProto, Attributes], str | None]] = {
    "Conv": _conv,
    "ConvTranspose": _conv,
    "MaxPool": _window,
    "AveragePool": _window,
    "LpPool": _window,
    "Reshape": _reshape,
    "Einsum": _einsum,
    "Transpose": _transpose,
}
