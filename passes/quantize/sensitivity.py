"""Mixed precision by measurement: which layers cost the most fidelity in 8 bits, and so stay float."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from sparsecc.allocators.dynamic_program import additive_allocate
from sparsecc.graph.linear_layers import LinearLayer
from sparsecc.passes.quantize.model_error import Meter
from sparsecc.passes.quantize.static import StaticQuantizer
from sparsecc.passes.quantize.stored_weights import weights_of
from sparsecc.passes.weights.linear_layers import constant_array

FLOAT_COST, INTEGER_COST = 1.0, 0.36
"""Time per multiply-accumulate, float and int8: the ratio measured for ResNet-50 on x64 with VNNI."""

ROUNDS = 8


@dataclass(frozen=True)
class MixedPrecision:
    """Layers left in float, the output error with and without them quantized, and each layer's own."""

    left_in_float: tuple[str, ...] = ()
    error: float = 0.0
    error_of_all: float = 0.0
    sensitivity: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {
            "left_in_float": list(self.left_in_float),
            "error": self.error,
            "error_of_all": self.error_of_all,
            "sensitivity": self.sensitivity,
        }


def choose_float_layers(
    quantizer: StaticQuantizer, max_drop: float, exclude: tuple[str, ...]
) -> MixedPrecision:
    """The cheapest set of layers to leave in float so that the output error stays within `max_drop`.

    The error is the energy of the difference over the energy of the float outputs on the calibration data.
    Every layer is measured alone, the set is chosen by dynamic programming as if losses added up, and the
    result is measured again; when they add up to more, the budget is tightened.
    """
    meter = Meter(quantizer.model, quantizer.compilation)

    def error_beside(left: tuple[str, ...]) -> float:
        """With everything but these quantized."""
        model = quantizer.model.clone()
        quantizer.lower(model, (*exclude, *left))
        return meter.error(model)

    whole = error_beside(())
    if whole <= max_drop:
        return MixedPrecision((), whole, whole)
    decision = quantizer.decide(quantizer.model, exclude)
    names = decision.names
    alone = [error_beside(tuple(n for n in names if n != name)) for name in names]
    work = [
        *(work_of(quantizer, layer) for layer in decision.layers),
        *(work_of_product(quantizer, node) for node in decision.products),
        *(float(sum(constant_array(value).size for value in weights_of(node))) for node in decision.stored),
    ]
    cost = [[INTEGER_COST * w, FLOAT_COST * w] for w in work]
    loss = [[value, 0.0] for value in alone]
    sensitivity = dict(zip(names, alone, strict=True))
    budget = max_drop
    for _ in range(ROUNDS):
        options = additive_allocate(cost, loss, budget)
        left = tuple(name for name, option in zip(names, options or [1] * len(names), strict=True) if option)
        error = error_beside(left)
        if error <= max_drop:
            return MixedPrecision(left, error, whole, sensitivity)
        budget *= min(0.7, 0.9 * max_drop / error)
    return MixedPrecision(tuple(names), 0.0, whole, sensitivity)


def work_of(quantizer: StaticQuantizer | None, layer: LinearLayer) -> float:
    """Multiply-accumulates of a layer over the calibration set, up to padding; its weights where values that it reads
    were not looked at."""
    weight = layer.array()
    value = "" if quantizer is None else quantizer.whole.root(layer.source)
    if quantizer is None or value not in quantizer.stats:
        return float(weight.size)
    positions = quantizer.stats[value].count / (weight.shape[layer.in_axis] * layer.group)
    strides = layer.node.attributes.get_ints("strides") or [1]
    return float(weight.size * positions / np.prod(strides))


def work_of_product(quantizer: StaticQuantizer, node: ir.Node) -> float:
    """The same of a product of two activations: every number of the first meets each column of the second."""
    left, right = node.inputs[:2]
    assert left is not None
    assert right is not None
    columns = right.shape[-1] if right.shape is not None else None
    seen = quantizer.stats.get(quantizer.whole.root(left.name or ""))
    return float((seen.count if seen else 1) * (columns if isinstance(columns, int) else 1))
