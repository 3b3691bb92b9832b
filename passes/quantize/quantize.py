"""The pass behind `--quantize`: int8, int8-dynamic, int4, fp16, bf16 and fp8."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import onnx_ir as ir

from sparsecc.errors import InputError
from sparsecc.passes.base import Pass, PassContext, PassResult
from sparsecc.passes.quantize.dynamic import quantize_dynamic
from sparsecc.passes.quantize.editor import prepare
from sparsecc.passes.quantize.half import HALF_TYPES, convert_to_half
from sparsecc.passes.quantize.static import StaticOptions, StaticQuantizer, already_quantized, weight_noise
from sparsecc.passes.quantize.weight_only import WeightOnlyOptions, quantize_weights

if TYPE_CHECKING:
    from sparsecc.plan import Plan

SCHEMES = ("auto", "qdq", "qoperator")


@dataclass(frozen=True)
class Quantize(Pass):
    """Give a model fewer bits, in the form that the target's kernels accelerate.

    type: int8 | int8-dynamic | int4 | fp16 | bf16 | fp8.
    method: how int8 and fp8 activation ranges are chosen: minmax, percentile, entropy, mse.
    scheme: auto picks what the target runs fastest; qdq only standard operators; qoperator integer operators.
    reduce_range: 7-bit weights, for x64 processors without VNNI.
    algorithm, block: int4 rounding (rtn, gptq, awq) and inputs per scale.
    exclude: names of nodes left in float. keep_io: fp16 and bf16 keep float32 inputs and outputs.
    """

    name: ClassVar[str] = "quantize"

    type: str = "int8"
    method: str = "minmax"
    scheme: str = "auto"
    percentile: float = 99.99
    per_channel: bool = True
    reduce_range: bool = False
    algorithm: str = "rtn"
    block: int = 32
    exclude: tuple[str, ...] = ()
    keep_io: bool = True

    def run(self, model: ir.Model, plan: Plan, context: PassContext) -> PassResult:
        """Quantize in place. InputError when the target lacks the type or calibration data is missing."""
        self._check(context)
        prepare(model)
        if self.type in HALF_TYPES:
            return convert_to_half(model, plan, context, self.type, self.exclude, keep_io=self.keep_io)
        skip = already_quantized(model)
        if skip is not None:
            return PassResult({"type": self.type, "nodes": []}, (skip,))
        if self.type == "int8-dynamic":
            return quantize_dynamic(model, plan, context, self.exclude, reduce_range=self.reduce_range)
        if self.type == "int4":
            return quantize_weights(
                model, plan, context, WeightOnlyOptions(self.algorithm, self.block), self.exclude
            )
        return self._static(model, plan, context)

    def _check(self, context: PassContext) -> None:
        if self.type not in context.target.types:
            raise InputError(
                f"quantize: target '{context.target.name}' does not accelerate '{self.type}': "
                f"it has {', '.join(sorted(context.target.types))}"
            )
        if self.scheme not in SCHEMES:
            raise InputError(f"quantize: unknown scheme '{self.scheme}': it is one of {', '.join(SCHEMES)}")

    def _static(self, model: ir.Model, plan: Plan, context: PassContext) -> PassResult:
        options = StaticOptions(
            self.type, self.method, self.percentile, self.per_channel, self.reduce_range, self.scheme
        )
        quantizer = StaticQuantizer(model, context, options)
        decision = quantizer.decide(model, self.exclude)
        facts: dict[str, Any] = {"type": self.type, "nodes": [site.name for site in decision.sites]}
        facts["weight_sqnr_db"] = weight_noise(decision, self.per_channel)
        facts.update(quantizer.facts(decision))
        quantizer.spec(decision).record(plan)
        decision = quantizer.lower(model, self.exclude)
        return PassResult(facts, tuple(decision.skipped))
