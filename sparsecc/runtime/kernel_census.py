"""The kernel census: which kernels ONNX Runtime picks for a model here. Needs no clock, no inputs.

The graph is optimized as a session would do it (level ALL), saved, and counted. Rules are those of ONNX
Runtime's Q/DQ fusion and of its blocked convolution layout (NchwcTransformer) on x64.
"""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx_ir as ir

from sparsecc.rules import Trait, operators_with, traits_of
from sparsecc.system.temp_folders import temporary_folder

CONVOLUTION_KERNELS = frozenset({"Conv", "FusedConv"})
"""What ONNX Runtime computes a Conv by in float."""

PRODUCT_KERNELS = frozenset({"MatMul", "Gemm", "FusedMatMul", "FusedGemm", "TransposeMatMul"})
"""What ONNX Runtime computes a MatMul or Gemm by in float."""

INTEGER_KERNELS = operators_with(Trait.COMPUTES) & operators_with(Trait.INTEGER) | {"GatherBlockQuantized"}
"""Kernels that compute on integer weights, or look them up."""

FLOAT_COMPUTE = operators_with(Trait.COMPUTES) - operators_with(Trait.INTEGER)
"""Kernels that multiply and accumulate in floating point."""

_LAYOUT_DOMAIN = "com.microsoft.nchwc"
_BLOCK = 16
_CHANNEL_STEP = 4
_REORDERS = frozenset({"ReorderInput", "ReorderOutput"})
"""ONNX Runtime's own changes of layout."""
_ACTIVATIONS = frozenset(
    {"Relu", "Clip", "LeakyRelu", "Sigmoid", "HardSigmoid", "HardSwish", "Gelu", "QuickGelu"}
)


def census(path: Path) -> dict[str, Any]:
    """Counts of kernels and what kept a layer in float, as JSON data.

    `kernels` counts nodes by "domain:type" ("Conv" alone in the ONNX domain); `integer`, `float` and
    `dequantize` sum them up; `blocked_convs` counts convolutions in the blocked layout; `in_float` names each
    float compute node of a quantized model with the likely reason; `misaligned` lists the convolutions that
    cannot use the blocked layout, or waste part of its blocks (unknown for .ort). InputError when the model
    does not load.
    """
    with temporary_folder("scratch") as scratch:
        optimized = _load_optimized(path, Path(scratch))
        nodes = list(_nodes(optimized))
        kernels = Counter(_kernel(node) for node in nodes)
        types = Counter(node.op_type for node in nodes)
        integer = {op: n for op, n in sorted(types.items()) if op in INTEGER_KERNELS}
        quantized = bool(integer) or types["DequantizeLinear"] > 0 or types["QuantizeLinear"] > 0
        in_float = (
            [_float_entry(node) for node in nodes if node.op_type in FLOAT_COMPUTE] if quantized else []
        )
    return {
        "kernels": dict(sorted(kernels.items())),
        "integer": integer,
        "float": {op: n for op, n in sorted(types.items()) if op in FLOAT_COMPUTE},
        "dequantize": types["DequantizeLinear"],
        "quantize": types["QuantizeLinear"],
        "blocked_convs": kernels[f"{_LAYOUT_DOMAIN}:Conv"],
        "in_float": in_float,
        "misaligned": [] if path.suffix == ".ort" else misaligned_convs(ir.load(path)),
        "machine": platform.machine().lower(),
    }


def _load_optimized(path: Path, scratch: Path) -> ir.Model:
    """The graph that a session runs, its weights left on the disk."""
    from sparsecc.runtime.session import open_session

    out = scratch / "optimized.onnx"
    open_session(path, optimized=out, weights_beside=True)
    return ir.load(out)


def _nodes(model: ir.Model) -> Iterator[ir.Node]:
    yield from ir.traversal.RecursiveGraphIterator(model.graph)


def _kernel(node: ir.Node) -> str:
    return f"{node.domain}:{node.op_type}" if node.domain else node.op_type


def _float_entry(node: ir.Node) -> dict[str, str]:
    output = node.outputs[0].name or ""
    return {"node": node.name or output, "type": _kernel(node), "reason": float_reason(node)}


def float_reason(node: ir.Node, machine: str = platform.machine().lower()) -> str:
    """The first rule of the Q/DQ fusion that this float node breaks."""
    if node.op_type not in CONVOLUTION_KERNELS | PRODUCT_KERNELS | {"ConvTranspose"}:
        return f"{node.op_type} has no integer kernel that a Q/DQ graph is turned into"
    activation, weight = (_origin(value) for value in node.inputs[:2])
    if activation is None or activation.op_type != "DequantizeLinear":
        return "input is not quantized: no DequantizeLinear before it"
    if weight is None or weight.op_type != "DequantizeLinear":
        return _unquantized_weight(node)
    x64 = machine in {"x86_64", "amd64"}
    if x64 and _type_of(activation) == ir.DataType.INT8:
        return "activation is int8: use uint8 on x64"
    if not _is_constant(weight.inputs[0]) and node.op_type != "MatMul":
        return "weight is not constant: quantize it ahead of time and keep only its DequantizeLinear"
    bias = _bias_reason(node)
    if bias:
        return bias
    if not _is_quantized_after(node.outputs[0]):
        return (
            "output is not quantized: put QuantizeLinear behind it, and let nothing else read the float value"
        )
    if node.op_type == "ConvTranspose":
        return "ConvTranspose has no integer kernel here"
    return (
        "scale or zero point is not of the form that the fusion takes (constant, per tensor for activations)"
    )


def _unquantized_weight(node: ir.Node) -> str:
    weight = node.inputs[1]
    if weight is not None and _is_constant(weight):
        return "weight is in float: it was not quantized"
    return "weight is not constant, and its input is not quantized"


def _bias_reason(node: ir.Node) -> str | None:
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is None:
        return None
    source = bias.producer()
    if _is_constant(bias):
        return None  # ONNX Runtime quantizes constant biases itself
    if source is None or source.op_type != "DequantizeLinear":
        return "bias is not constant, and in float: give it as int32 behind a DequantizeLinear"
    if _type_of(source) != ir.DataType.INT32:
        return "bias is not int32"
    return None


def _type_of(dequantize: ir.Node) -> ir.DataType | None:
    """The integer type that a DequantizeLinear reads: from its input, or its zero point."""
    for value in (dequantize.inputs[0], *dequantize.inputs[2:3]):
        if value is not None and value.dtype is not None:
            return value.dtype
        if value is not None and value.const_value is not None:
            return value.const_value.dtype
    return None


def _origin(value: ir.Value | None) -> ir.Node | None:
    """The node that made a value, seen through changes of layout."""
    node = value.producer() if value is not None else None
    while node is not None and _changes_layout(node) and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    return node


def _changes_layout(node: ir.Node) -> bool:
    """Whether a node only reshapes or reorders, in the type that its operand has."""
    return node.op_type in _REORDERS or (node.op_type != "Cast" and bool(traits_of(node) & Trait.KEEPS_SIZE))


def _is_constant(value: ir.Value | None) -> bool:
    return value is not None and (value.is_initializer() or value.const_value is not None)


def _is_quantized_after(value: ir.Value) -> bool:
    """Whether only a QuantizeLinear reads a value, behind an activation or a change of layout at most."""
    while not value.is_graph_output() and len(value.uses()) == 1:
        reader = next(iter(value.uses())).node
        if reader.op_type == "QuantizeLinear":
            return True
        if reader.op_type not in _ACTIVATIONS and not _changes_layout(reader):
            return False
        value = reader.outputs[0]
    return False


def misaligned_convs(model: ir.Model) -> list[dict[str, Any]]:
    """Float convolutions outside the blocked layout ("outside"), or that fill its blocks in part ("padded").

    A 2-D convolution enters it when its input channels are under 16 or a multiple of 4; grouped ones need
    whole blocks of 16 per group on both sides; depthwise ones a multiple of 4 channels. Output channels are
    padded to 16.
    """
    found = []
    for node in _nodes(model):
        if node.op_type not in CONVOLUTION_KERNELS or len(node.inputs) < 2:
            continue
        weight = node.inputs[1]
        if weight is None or weight.shape is None or len(weight.shape) != 4 or _is_from_integers(weight):
            continue
        shape = weight.shape
        if not isinstance(shape[0], int) or not isinstance(shape[1], int):
            continue
        group = node.attributes.get_int("group", 1)
        fault = _fault(shape[0], shape[1], group)
        if fault is not None:
            effect, reason = fault
            name = node.name or node.outputs[0].name or ""
            entry = {"node": name, "in": shape[1] * group, "out": shape[0], "group": group}
            found.append({**entry, "effect": effect, "reason": reason})
    return found


def _is_from_integers(weight: ir.Value) -> bool:
    source = weight.producer()
    return source is not None and source.op_type == "DequantizeLinear"


def _fault(out: int, in_per_group: int, group: int) -> tuple[str, str] | None:
    if group == 1:
        if in_per_group >= _BLOCK and in_per_group % _CHANNEL_STEP:
            return "outside", f"{in_per_group} input channels are no multiple of {_CHANNEL_STEP}"
    elif in_per_group == 1 and out == group:
        if out % _CHANNEL_STEP:
            return "outside", f"{out} depthwise channels are no multiple of {_CHANNEL_STEP}"
    elif in_per_group % _BLOCK or (out // group) % _BLOCK:
        return "outside", f"groups of {in_per_group} to {out // group} channels are no multiples of {_BLOCK}"
    if out % _BLOCK:
        return "padded", f"{out} output channels are padded to {-(-out // _BLOCK) * _BLOCK}"
    return None
