"""int8 and fp8: weights and activations, by ranges that calibration finds."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from sparsecc.compilation import Compilation
from sparsecc.errors import InputError
from sparsecc.graph.patterns import exactly
from sparsecc.passes.base import PassResult, require_data
from sparsecc.passes.quantize.bias_correction import correct_biases
from sparsecc.passes.quantize.coordinate_descent import round_weights
from sparsecc.passes.quantize.equalize import equalize_convolutions
from sparsecc.passes.quantize.kind import Kind
from sparsecc.passes.quantize.select_layers import Decision
from sparsecc.passes.quantize.sensitivity import choose_float_layers
from sparsecc.passes.quantize.smoothquant import smooth_activations
from sparsecc.passes.quantize.static import StaticOptions, StaticQuantizer, weight_noise
from sparsecc.passes.quantize.stopwatch import is_timed
from sparsecc.passes.quantize.what_pays import Paying, by_table, by_timing, groups_of
from sparsecc.remarks import Remark

if TYPE_CHECKING:
    from sparsecc.passes.quantize.quantize import Quantize
    from sparsecc.plan import Plan


class Static(Kind):
    """Layers and what lies between them in 8 bits, decided once and lowered for the target."""

    keeps_loss = True
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
        if options.equalize:
            facts["equalized"] = equalize_convolutions(model)
        if options.smooth:
            facts["smoothed"] = smooth_activations(model, compilation, options.smooth)
        in_float = model.clone() if options.equalize or options.smooth else None
        quantizer = StaticQuantizer(model, compilation, static_options(options, options.type))
        exclude = options.exclude
        if options.max_drop is not None:
            mixed = choose_float_layers(quantizer, options.max_drop, exclude)
            facts["mixed_precision"] = mixed.to_json()
            exclude = (*exclude, *mixed.left_in_float)
        left_for_speed: list[Remark] = []
        if options.only_what_pays:
            paying = what_pays(quantizer, exclude, options.force, compilation)
            exclude = (*exclude, *paying.left)
            facts["speed"], facts["warnings"], left_for_speed = paying.facts, paying.warnings, paying.remarks
        decision = quantizer.decide(model, exclude)
        facts["nodes"] = [layer.name for layer in decision.layers]
        facts["weight_sqnr_db"] = weight_noise(decision, options.per_channel)
        told = quantizer.facts(decision)
        facts |= told | {"warnings": [*facts.get("warnings", ()), *told["warnings"]]}
        quantizer.spec(decision).record(plan)
        left = _round(options, model, decision, compilation, facts)
        known = {remark.where for remark in left_for_speed}
        remarks = [remark for remark in quantizer.lower(model, exclude).remarks if remark.where not in known]
        return PassResult(facts, (*left_for_speed, *remarks, *left), in_float)


def what_pays(
    quantizer: StaticQuantizer, exclude: tuple[str, ...], force: Collection[str], compilation: Compilation
) -> Paying:
    """Which layers of those not excluded stay in float because they would be no faster; what was timed goes into
    the recipe by name."""
    groups = groups_of(quantizer.decide(quantizer.model, exclude), force)
    if not is_timed(compilation):
        return by_table(groups)

    def written(left: Collection[str]) -> ir.Model:
        clone = quantizer.model.clone()
        quantizer.lower(clone, (*exclude, *left))
        return clone

    paying = by_timing(groups, written, quantizer.model, compilation) if groups else Paying()
    names = [node.name or "" for node in quantizer.model.graph]
    left = ",".join(exactly(name, names) for name in (*exclude, *paying.left))
    asked = {**compilation.options.quantize_options, **({"exclude": left} if left else {})}
    compilation.measured_options |= {"quantize": "int8!", "quantize_options": asked}
    return paying


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
    if options.algorithm == "gptq":
        before, left = round_weights(model, decision.layers, compilation, limit)
    if options.correct_bias:
        facts["corrected"] = correct_biases(
            model, decision.layers, before, compilation, per_channel=options.per_channel, limit=limit
        )
    return left
