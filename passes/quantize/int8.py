"""int8 and fp8: weights and activations, by ranges that calibration finds."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from sparsecc.compilation import Compilation
from sparsecc.errors import InputError
from sparsecc.passes.base import PassResult, require_data
from sparsecc.passes.quantize.bias_correction import correct_biases
from sparsecc.passes.quantize.coordinate_descent import round_weights
from sparsecc.passes.quantize.equalize import equalize_convolutions
from sparsecc.passes.quantize.kind import Kind
from sparsecc.passes.quantize.lift import lift
from sparsecc.passes.quantize.select_layers import Decision
from sparsecc.passes.quantize.sensitivity import choose_float_layers
from sparsecc.passes.quantize.smoothquant import smooth_activations
from sparsecc.passes.quantize.static import StaticOptions, StaticQuantizer, weight_noise
from sparsecc.passes.quantize.stored_weights import noise_of
from sparsecc.passes.quantize.what_pays import Paying, groups_of, what_pays
from sparsecc.remarks import Remark

if TYPE_CHECKING:
    from sparsecc.passes.quantize.quantize import Quantize
    from sparsecc.plan import Plan

IN_BODY = "in a body, whose values are not kept: its weight is rounded to nearest, and its bias not corrected"


class Static(Kind):
    """Layers and what lies between them in 8 bits, decided once and lowered for the target."""

    keeps_loss = True
    lifts = True
    advice = "--quantize-option max_drop=0.01 leaves the layers that cost most in float"

    def require(self, options: Quantize) -> None:
        allowed = ("rtn", "gptq") if options.type == "int8" and options.per_channel else ("rtn",)
        if options.algorithm not in allowed:
            what = options.type if options.per_channel else f"{options.type} per tensor"
            raise InputError(
                f"quantize: no rounding '{options.algorithm}' for {what}: it is one of {', '.join(allowed)}"
            )

    def needs_data(self, options: Quantize) -> str:
        return options.type

    def convert(self, options: Quantize, model: ir.Model, plan: Plan, compilation: Compilation) -> PassResult:
        facts: dict[str, Any] = {"type": options.type}
        asked = {"max_drop": options.max_drop is not None, "algorithm=gptq": options.algorithm == "gptq"}
        asked |= {"smooth": bool(options.smooth), "correct_bias": options.correct_bias}
        for what in (name for name, wanted in asked.items() if wanted):
            require_data(f"{options.type} with {what}", has_data=bool(compilation.pass_feeds))
        ranges = lift(model)
        facts |= {"lifted": len(ranges)} if ranges is not None else {}
        if options.equalize:
            facts["equalized"] = equalize_convolutions(model)
        if options.smooth:
            facts["smoothed"] = smooth_activations(model, compilation, options.smooth)
        is_moved = bool(options.equalize or options.smooth or ranges is not None)
        in_float = model.clone() if is_moved else None
        how = replace(static_options(options, options.type), beyond_layers=options.type == "int8")
        quantizer = StaticQuantizer(model, compilation, how, ranges or {})
        exclude = options.exclude
        if options.max_drop is not None:
            mixed = choose_float_layers(quantizer, options.max_drop, exclude)
            facts["mixed_precision"] = mixed.to_json()
            exclude = (*exclude, *mixed.left_in_float)
        paying = _paying(quantizer, exclude, options, compilation) if options.only_what_pays else None
        exclude = (*exclude, *(paying.left if paying else _thin_products(quantizer, exclude, options.force)))
        decision = quantizer.decide(model, exclude)
        facts["nodes"] = decision.names
        limit = 63 if options.reduce_range else 127
        facts["weight_sqnr_db"] = weight_noise(decision, options.per_channel) | noise_of(
            decision.stored, limit
        )
        facts |= quantizer.facts(decision)
        quantizer.spec(decision).record(plan)
        left = _round(options, model, decision, compilation, facts)
        remarks = (*quantizer.lower(model, exclude).remarks, *left)
        result = PassResult(facts, remarks, in_float, was_rounded=ranges is not None)
        return paying.told(result) if paying else result


def _paying(
    quantizer: StaticQuantizer, exclude: tuple[str, ...], options: Quantize, compilation: Compilation
) -> Paying:
    """Which layers of those not excluded stay in float because they would be no faster."""

    def written(left: Collection[str]) -> ir.Model:
        clone = quantizer.model.clone()
        quantizer.lower(clone, (*exclude, *left))
        return clone

    groups = groups_of(quantizer.decide(quantizer.model, exclude), options.force, quantizer.products)
    return what_pays(options.type, groups, written, quantizer.model, exclude, compilation)


def _thin_products(quantizer: StaticQuantizer, exclude: tuple[str, ...], force: Collection[str]) -> list[str]:
    """Products of activations that are too small to pay: there are no bytes to save, even if a type is insisted on."""
    groups = groups_of(quantizer.decide(quantizer.model, exclude), force, quantizer.products)
    return [name for group in groups if group.is_extra and group.is_thin for name in group.names]


def static_options(options: Quantize, type_: str) -> StaticOptions:
    """Those of the pass's options that static quantization to a type has."""
    return StaticOptions(
        type_,
        options.method,
        options.percentile,
        options.per_channel,
        options.reduce_range,
        options.scheme,
    )


def _round(
    options: Quantize, model: ir.Model, decision: Decision, compilation: Compilation, facts: dict[str, Any]
) -> list[Remark]:
    """Give the weights their rounded numbers, and the biases what that shifts; what was left alone."""
    before: dict[str, ir.TensorProtocol] = {}
    left: list[Remark] = []
    limit = 63 if options.reduce_range else 127
    layers = [layer for layer in decision.layers if layer.node.graph is model.graph]
    if options.algorithm == "gptq":
        before, left = round_weights(model, layers, compilation, limit)
    if options.correct_bias:
        facts["corrected"] = correct_biases(
            model, layers, before, compilation, per_channel=options.per_channel, limit=limit
        )
    if options.algorithm == "gptq" or options.correct_bias:
        left += [Remark(layer.name, IN_BODY) for layer in decision.layers if layer not in layers]
    return left
