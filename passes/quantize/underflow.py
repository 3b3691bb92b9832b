"""Layers whose numbers are too small for integers: their scale would be no normal float32, and all numbers zero."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from sparsecc.graph.linear_layers import SINGLE_OR_HALF, LinearLayer, is_float_constant, layer_of
from sparsecc.passes.quantize.spec import SMALLEST
from sparsecc.passes.quantize.stored_weights import OPERANDS, weights_of
from sparsecc.passes.weights.linear_layers import constant_array

UNDERFLOW = "left in float: weights too small for integers: scales of them underflow float32"
TOO_FINE = (
    "left in float: values too small for integers: scales of them, or of their products, underflow float32"
)
UNSEEN = "left in float: a value of it is zero on all samples, or none of them runs it: it has no range"
LEVELS = 127
"""Levels of 8 bits on either side of zero: the finest scale of all integer types."""


def too_small(model: ir.Model) -> tuple[str, ...]:
    """The names of the nodes, in bodies too, with a weight that is not zero and has no number of LEVELS * SMALLEST.

    Of single channels that are as small beside others nothing is said: they are rounded to zero as noise is.
    """
    known: dict[ir.Value, bool] = {}
    found = []
    for node in model.graph.all_nodes():
        for value in _weights(node):
            if value not in known:
                known[value] = _underflows(constant_array(value))
            if known[value]:
                found.append(node.name or "")
                break
    return tuple(found)


def _weights(node: ir.Node) -> Iterator[ir.Value]:
    """The constants that integers would stand for."""
    layer = layer_of(node, SINGLE_OR_HALF)
    if isinstance(layer, LinearLayer):
        yield layer.weight
    elif not node.domain and node.op_type in OPERANDS:
        yield from (value for value in weights_of(node) if is_float_constant(value))
    elif not node.domain and node.op_type == "Gather" and is_float_constant(node.inputs[0]):
        yield from (value for value in node.inputs[:1] if value is not None)


def _underflows(weight: np.ndarray) -> bool:
    """Whether the largest magnitude is under what a scale can hold, and not zero."""
    if not weight.size:
        return False
    largest = max(float(weight.max()), -float(weight.min()))
    return 0 < largest <= LEVELS * SMALLEST
