"""Mixed precision by measurement: which layers cost the most fidelity in 8 bits, and so stay float."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
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
NEAR = 0.7
"""An error of so much of what is allowed, or more, uses it well."""
STEP = 2.0
"""Decibels between levels of loss that are foreseen."""
LEVELS = 14

Level = tuple[float, float]
"""(the output error that is foreseen, the share of the 8-bit layers' work that then stays in 8 bits)."""


@dataclass(frozen=True)
class MixedPrecision:
    """Layers left in float, the output error with and without them quantized, each layer's own, and the levels of
    loss that other choices of layers would have."""

    left_in_float: tuple[str, ...] = ()
    error: float = 0.0
    error_of_all: float = 0.0
    sensitivity: dict[str, float] = field(default_factory=dict)
    levels: tuple[Level, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "left_in_float": list(self.left_in_float),
            "error": self.error,
            "error_of_all": self.error_of_all,
            "sensitivity": self.sensitivity,
            "levels": [list(level) for level in self.levels],
        }


def choose_float_layers(
    quantizer: StaticQuantizer, max_drop: float, exclude: tuple[str, ...]
) -> MixedPrecision:
    """The cheapest set of layers to leave in float so that the output error stays within `max_drop`.

    The error is the energy of the difference over the energy of the float outputs on the calibration data.
    Every layer is measured alone, the set is chosen by dynamic programming as if losses added up, and the
    result is measured again: where they add up to more or to less, the budget is corrected by bisection.
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
    sensitivity = dict(zip(names, alone, strict=True))

    def left_at(budget: float) -> tuple[str, ...]:
        """The layers that stay in float so that the others' own errors sum to at most a budget."""
        options = _least_work(work, alone, budget)
        return tuple(name for name, option in zip(names, options, strict=True) if option)

    left, error = _within(left_at, error_beside, max_drop)
    return MixedPrecision(left, error, whole, sensitivity, _levels(work, alone, whole))


def _within(
    left_at: Callable[[float], tuple[str, ...]], error_beside: Callable[[tuple[str, ...]], float], most: float
) -> tuple[tuple[str, ...], float]:
    """The layers left in float at the largest budget that was found to keep the error within `most`; that error."""
    best, found, low, high, budget = left_at(-1.0), 0.0, 0.0, math.inf, most
    for _ in range(ROUNDS):
        left = left_at(budget)
        if low and left == best:
            break
        error = error_beside(left)
        if error <= most:
            best, found, low = left, error, budget
            if error >= NEAR * most:
                break
        else:
            high = budget
        if low and high < math.inf:
            budget = math.sqrt(low * high)
        elif low:
            budget *= max(1.4, 0.9 * most / max(error, 1e-3 * most))
        else:
            budget *= min(0.7, 0.9 * most / error)
    return best, found


def _least_work(work: Sequence[float], alone: Sequence[float], budget: float) -> list[int]:
    """1 for each layer that stays in float: the least time in all of layers whose errors sum to at most the budget;
    all of them where that is negative."""
    cost = [[INTEGER_COST * w, FLOAT_COST * w] for w in work]
    return additive_allocate(cost, [[value, 0.0] for value in alone], budget) or [1] * len(work)


def _levels(work: Sequence[float], alone: Sequence[float], whole: float) -> tuple[Level, ...]:
    """Choices of layers from all in 8 bits downwards; their summed errors are scaled to the error of all."""
    total, scale = sum(work) or 1.0, whole / (sum(alone) or 1.0)
    levels = [(whole, 1.0)]
    for number in range(1, LEVELS):
        loss = whole * 10 ** (-number * STEP / 10)
        options = _least_work(work, alone, loss / scale)
        share = sum(w for w, option in zip(work, options, strict=True) if not option) / total
        if 0 < share < levels[-1][1]:
            levels.append((float(f"{loss:.4g}"), round(share, 4)))
    return tuple(levels)


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
