"""What fp16's range (6e-8 to 65504) cannot hold stays in float32, or is written in numbers that fit.

A constant under the smallest number becomes zero and one above the largest infinity: of an epsilon, or a batch norm's
running variance, neither is near. Masks are the exception: to a softmax -65504 is as good as -1e9.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np
import onnx_ir as ir

from sparsecc.axes.sizes import at
from sparsecc.graph.linear_layers import is_float_constant
from sparsecc.ir.graph_editor import GraphEditor
from sparsecc.passes.weights.linear_layers import constant_array
from sparsecc.rules import Trait, shapes_of, traits_of
from sparsecc.shapes.infer import infer

FP16_MAX = 65504.0
SMALLEST_KEPT = 50 * 2.0**-24
"""Below it even the largest number of a constant is off by more than 1 %: half a step of the subnormals."""

Types = Mapping[ir.Value, ir.DataType]

_ADDED = frozenset({"Add", "Sub", "Max", "Min", "Clip", "Where"})
"""A tiny operand of these matters only where a division, a root or a logarithm reads the result."""
_GUARDED = frozenset({"Reciprocal", "Log", "Sqrt", "Pow"})
SATURATES = frozenset({"Clip", "Min", "Max"})
"""Operators to which a bound beyond the range is as good at its end."""
_ON_THE_WAY = frozenset({"Add", "Sub", "Mul", "Where", "Max", "Min", "Clip", "Cast", "Abs", "Neg", "Concat"})
_REDUCES = frozenset({"ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin"})
_SUMS = frozenset({"ReduceMean", "ReduceSum", "ReduceL1"})
DEEPEST = 2048
"""Numbers from which on a sum of them stays float32: fp16 counts no further than 2048 in steps of one, and the sum of
65504 ones is infinite. NVIDIA's AutoCast has `max_depth_of_reduction` for this."""
_BOUNDED = frozenset(
    {"Div", "Softmax", "LogSoftmax", "Sigmoid", "Tanh", "Erf", "HardSigmoid", "LpNormalization"}
)
"""Operators whose result is of ordinary size again, whatever the size of what they read."""


def deep_sums(model: ir.Model) -> dict[str, str]:
    """Node -> why it stays in float32: it sums many numbers, or reads such a sum."""
    sums = [node for node in model.graph.all_nodes() if node.op_type in _SUMS and not node.domain]
    if not sums:
        return {}
    shapes, kept = infer(model, shapes_of), dict[str, str]()
    for node in sums:
        data = node.inputs[0]
        before, after = (shapes.of(value) if value is not None else None for value in (data, node.outputs[0]))
        if before is None or after is None:
            continue
        many, few = (math.prod(at(size, 0) for size in shape) for shape in (before, after))
        if few and many // few >= DEEPEST:
            reason = f"a sum of {many // few} numbers: fp16 adds no more than {DEEPEST}"
            kept[node.name or ""] = reason
            if node.op_type != "ReduceMean":
                kept |= {reader.name or "": reason for reader in node.outputs[0].consumers()}
    return kept


def outside_range(model: ir.Model, types: Types) -> dict[str, str]:
    """Node -> why it stays in float32: a constant that fp16 does not hold, or a value of that size which it reads."""
    kept: dict[str, str] = {}
    tiny: dict[ir.Value, str] = {}
    for node in model.graph.all_nodes():
        reason = _lost_constant(node, types)
        reason = reason or next((tiny[value] for value in node.inputs if value in tiny), "")
        if not reason:
            continue
        kept[node.name or ""] = reason
        if not _is_bounded(node):
            tiny.update(dict.fromkeys(node.outputs, reason))
    return kept


def _is_bounded(node: ir.Node) -> bool:
    """Whether a result is of ordinary size: that of the operators above, of norms, and of a product with a reciprocal,
    which divides, as the norms of language models do."""
    if node.op_type in _BOUNDED or Trait.NORMALISES in traits_of(node):
        return True
    makers = (value.producer() for value in node.inputs if value is not None)
    return node.op_type == "Mul" and any(
        maker is not None and maker.op_type == "Reciprocal" for maker in makers
    )


def _lost_constant(node: ir.Node, types: Types) -> str:
    for value in node.inputs:
        if value is None or types.get(value) != ir.DataType.FLOAT or not is_float_constant(value):
            continue
        largest = _largest(constant_array(value))
        if largest > FP16_MAX and not saturates(node, constant_array(value)):
            return f"constant '{value.name}' holds {largest:.3g}, above the largest number of fp16"
        if 0 < largest < SMALLEST_KEPT and (node.op_type not in _ADDED or _is_guard(node.outputs[0])):
            return f"constant '{value.name}' holds {largest:.3g}, below the smallest numbers of fp16"
    return ""


def _largest(numbers: np.ndarray) -> float:
    finite = np.abs(numbers[np.isfinite(numbers)])
    return float(finite.max(initial=0.0))


def _is_guard(value: ir.Value) -> bool:
    """Whether a divisor, a root or a logarithm comes of the value without much arithmetic between."""
    for reader, place in _readers(value, _REDUCES | {"Max", "Abs", "Expand"}):
        if reader.op_type in _GUARDED or (reader.op_type == "Div" and place == 1):
            return True
    return False


def saturates(node: ir.Node, numbers: np.ndarray) -> bool:
    """Whether the largest number that fp16 has does as well: a bound, or a mask before a softmax."""
    if node.op_type in SATURATES:
        return True
    masks = bool((numbers[np.isfinite(numbers)] <= FP16_MAX).all())
    return masks and (
        node.op_type == "Softmax"
        or any(reader.op_type == "Softmax" for reader, _ in _readers(node.outputs[0], _ON_THE_WAY))
    )


def _readers(value: ir.Value, through: frozenset[str]) -> Iterator[tuple[ir.Node, int]]:
    """(node, place) of all that read a value, directly or behind what moves slots and the operators in `through`."""
    seen, waiting = {value}, [value]
    while waiting:
        for reader, place in waiting.pop().uses():
            yield reader, place
            if reader.op_type in through or Trait.MOVES in traits_of(reader):
                waiting += [output for output in reader.outputs if output not in seen]
                seen.update(reader.outputs)


def fit_batch_norms(model: ir.Model) -> int:
    """Give batch norms whose statistics fp16 does not hold the same function with mean 0 and variance 1; how many.

    y = x g/s + (b - mean g/s), computed in float64, with s the standard deviation.
    """
    editor, count = GraphEditor(model), 0
    for node in list(model.graph.all_nodes()):
        if node.op_type != "BatchNormalization" or node.domain:
            continue
        if node.attributes.get_int("training_mode", 0):
            continue
        operands = node.inputs[1:5]
        if not all(is_float_constant(value) for value in operands):
            continue
        scale, shift, mean, variance = (
            constant_array(v).astype(np.float64) for v in operands if v is not None
        )
        epsilon = node.attributes.get_float("epsilon", 1e-5)
        if epsilon >= SMALLEST_KEPT and max(map(_largest, (scale, shift, mean, variance))) <= FP16_MAX:
            continue
        factor = scale / np.sqrt(variance + epsilon)
        folded = (factor, shift - mean * factor, np.zeros_like(mean), np.ones_like(variance))
        names = ("scale", "bias", "mean", "variance")
        for place, (name, array) in enumerate(zip(names, folded, strict=True), 1):
            constant = editor.constant(f"{node.name}_{name}", array.astype(np.float32))
            node.replace_input_with(place, constant)
        node.attributes["epsilon"] = ir.Attr("epsilon", ir.AttributeType.FLOAT, 0.0)
        count += 1
    if count:
        editor.finish()
    return count
