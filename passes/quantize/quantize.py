"""The pass behind `--quantize`: int8, int8-dynamic, int4, fp16, bf16, fp8, and these mixed under a budget."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import onnx_ir as ir

from sparsecc.compilation import Compilation
from sparsecc.errors import GoalError, InputError
from sparsecc.ir.graph_editor import prepare
from sparsecc.passes.base import Pass, PassResult, require_data
from sparsecc.passes.quantize.bias_correction import correct_biases
from sparsecc.passes.quantize.coordinate_descent import round_weights
from sparsecc.passes.quantize.dynamic import quantize_dynamic
from sparsecc.passes.quantize.equalize import equalize_convolutions
from sparsecc.passes.quantize.float16 import HALF_TYPES, convert_to_half
from sparsecc.passes.quantize.fold_batch_norms import fold_batch_norms
from sparsecc.passes.quantize.mixed_precision import MixOptions, mix_types
from sparsecc.passes.quantize.select_layers import Decision
from sparsecc.passes.quantize.sensitivity import choose_float_layers
from sparsecc.passes.quantize.smoothquant import smooth_activations
from sparsecc.passes.quantize.static import StaticOptions, StaticQuantizer, already_quantized, weight_noise
from sparsecc.passes.quantize.weight_only import WeightOnlyOptions, quantize_weights
from sparsecc.passes.weights.fidelity import fidelity, float_outputs
from sparsecc.passes.weights.low_rank import require_share
from sparsecc.remarks import Remark

if TYPE_CHECKING:
    from sparsecc.plan import Plan
    from sparsecc.targets import Target

SCHEMES = ("auto", "qdq", "qoperator")


@dataclass(frozen=True)
class Quantize(Pass):
    """Give a model fewer bits, in the form that the target's kernels accelerate.

    type: int8 | int8-dynamic | int4 | fp16 | bf16 | fp8 | mixed.
    method: how int8 and fp8 activation ranges are chosen: minmax, percentile, entropy, mse.
    scheme: auto picks what the target runs fastest; qdq only standard operators; qoperator integer operators.
    reduce_range: 7-bit weights, for x64 processors without VNNI.
    algorithm: how weights are rounded: rtn to nearest; gptq by what it does to the layer's output (int8 and int4,
    needs data); awq (int4) scales inputs first. block: inputs per scale of int4. eora: the share of a layer's
    time that a low-rank path beside an int4 layer may add.
    smooth: SmoothQuant's alpha, 0 for none. equalize: cross-layer equalisation. correct_bias: the bias
    takes back the mean error of rounded weights.
    max_drop: relative output error that is allowed on the calibration data. int8 and fp8 leave the layers
    that cost most in float for it; with the other types the compile is refused when it is more.
    size: bytes that a mixed model may have; speedup: how many times as fast as in float it must run here.
    types: what it is mixed of, beside float; all that the target has.
    exclude: names of nodes left in float. keep_io: fp16 and bf16 keep float32 inputs and outputs.
    rest: fp16 or bf16 for what int8, int4 and fp8 leave in float; "" leaves it in float32.
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
    smooth: float = 0.0
    equalize: bool = False
    correct_bias: bool = False
    max_drop: float | None = None
    exclude: tuple[str, ...] = ()
    keep_io: bool = True
    rest: str = ""
    eora: float = 0.0
    size: float | None = None
    speedup: float | None = None
    types: tuple[str, ...] = ()

    def run(self, model: ir.Model, plan: Plan, compilation: Compilation) -> PassResult:
        """Quantize in place. InputError when the target lacks the type or calibration data is missing."""
        self.require(compilation.target, has_data=bool(compilation.pass_feeds))
        prepare(model)
        skip = None if self.type in HALF_TYPES else already_quantized(model)
        if skip is not None:
            return PassResult({"type": self.type, "nodes": []}, (skip,))
        before = float_outputs(model, compilation)
        folded, left = (0, []) if self.type in (*HALF_TYPES, "int4") else fold_batch_norms(model)
        result = self._convert_rest(self._convert(model, plan, compilation), model, plan, compilation)
        lost = fidelity(model, before, compilation)
        self._refuse_loss(lost.get("output_sqnr_db") or {})
        warnings = [*result.facts.pop("warnings", []), *lost.pop("warnings", [])]
        facts = {
            **result.facts,
            **lost,
            **({"folded_batch_norms": folded} if folded else {}),
            "warnings": warnings,
        }
        return replace(result, facts=facts, skipped=(*left, *result.skipped))

    def require(self, target: Target, *, has_data: bool) -> None:
        mixed = self.types or ("int8", "int4")
        types = mixed if self.type == "mixed" else (self.type,)
        for type_ in (*types, *([self.rest] if self.rest else [])):
            if type_ not in target.types:
                raise InputError(
                    f"quantize: target '{target.name}' does not accelerate '{type_}': "
                    f"it has {', '.join(sorted(target.types))}"
                )
        if self.rest and (self.rest not in HALF_TYPES or self.type in HALF_TYPES):
            raise InputError(
                f"quantize: rest '{self.rest}' beside '{self.type}': "
                f"rest is one of {', '.join(HALF_TYPES)}, beside int8, int4 or fp8"
            )
        require_share(self.eora)
        only = {"eora": (bool(self.eora), "int4"), "size": (self.size is not None, "mixed")}
        only["speedup"] = (self.speedup is not None, "mixed")
        only["types"] = (bool(self.types), "mixed")
        for option, (is_given, type_) in only.items():
            if is_given and self.type != type_:
                raise InputError(f"quantize: {option} does nothing for {self.type}: it is for {type_}")
        if self.scheme not in SCHEMES:
            raise InputError(f"quantize: unknown scheme '{self.scheme}': it is one of {', '.join(SCHEMES)}")
        if self.type in ("int8", "fp8"):
            self._check_rounding()
        if what := self._what_needs_data():
            require_data(what, has_data=has_data)

    def _what_needs_data(self) -> str:
        if self.type in ("int8", "fp8", "mixed"):
            return self.type
        if self.type == "int4" and (self._weight_options().algorithm != "rtn" or self.eora):
            return f"int4 with {'eora' if self.eora else self.algorithm}"
        return "max_drop" if self.max_drop is not None else ""

    def _weight_options(self) -> WeightOnlyOptions:
        return WeightOnlyOptions(self.algorithm, self.block, eora=self.eora)

    def _convert(self, model: ir.Model, plan: Plan, compilation: Compilation) -> PassResult:
        if self.type in HALF_TYPES:
            return convert_to_half(model, plan, compilation, self.type, self.exclude, keep_io=self.keep_io)
        if self.type == "int8-dynamic":
            return quantize_dynamic(model, plan, compilation, self.exclude, reduce_range=self.reduce_range)
        if self.type == "int4":
            return quantize_weights(model, plan, compilation, self._weight_options(), self.exclude)
        if self.type == "mixed":
            return mix_types(model, plan, compilation, self._mix(compilation))
        return self._static(model, plan, compilation)

    def _mix(self, compilation: Compilation) -> MixOptions:
        types = self.types or ("int8", "int4")
        static = self._static_options("fp8" if "fp8" in types else "int8")
        return MixOptions(
            types,
            static,
            self.size,
            self.speedup,
            self.max_drop,
            self.algorithm,
            self.exclude,
            self.rest,
            self.keep_io,
        )

    def _static_options(self, type_: str) -> StaticOptions:
        return StaticOptions(
            type_, self.method, self.percentile, self.per_channel, self.reduce_range, self.scheme
        )

    def _convert_rest(
        self, result: PassResult, model: ir.Model, plan: Plan, compilation: Compilation
    ) -> PassResult:
        if not self.rest:
            return result
        done = convert_to_half(model, plan, compilation, self.rest, self.exclude, keep_io=self.keep_io)
        warnings = [*result.facts.pop("warnings", []), *done.facts.pop("warnings", [])]
        facts = {**result.facts, "rest": done.facts, "warnings": warnings}
        return PassResult(facts, (*result.skipped, *done.skipped))

    def _refuse_loss(self, kept: Mapping[str, float]) -> None:
        """GoalError when an output lost more than `max_drop`; int8 and fp8 left layers in float for it."""
        if self.max_drop is None or self.type in ("int8", "fp8", "mixed"):
            return
        for output, ratio in kept.items():
            lost = 10 ** (-ratio / 10)
            if lost > self.max_drop:
                raise GoalError(
                    f"quantize: output '{output}' loses {lost:.2%} to {self.type}, over {self.max_drop:.2%}: "
                    "allow more, or leave sensitive nodes out with exclude"
                )

    def _static(self, model: ir.Model, plan: Plan, compilation: Compilation) -> PassResult:
        facts: dict[str, Any] = {"type": self.type}
        self._improve(model, compilation, facts)
        quantizer = StaticQuantizer(model, compilation, self._static_options(self.type))
        exclude = self.exclude
        if self.max_drop is not None:
            mixed = choose_float_layers(quantizer, self.max_drop, exclude)
            facts["mixed_precision"] = mixed.to_json()
            exclude = (*exclude, *mixed.left_in_float)
        decision = quantizer.decide(model, exclude)
        facts["nodes"] = [layer.name for layer in decision.layers]
        facts["weight_sqnr_db"] = weight_noise(decision, self.per_channel)
        facts.update(quantizer.facts(decision))
        quantizer.spec(decision).record(plan)
        left = self._round(model, decision, compilation, facts)
        return PassResult(facts, (*quantizer.lower(model, exclude).skipped, *left))

    def _round(
        self, model: ir.Model, decision: Decision, compilation: Compilation, facts: dict[str, Any]
    ) -> list[Remark]:
        """Give the weights their rounded numbers, and the biases what that shifts; what was left alone."""
        before: dict[str, ir.TensorProtocol] = {}
        left: list[Remark] = []
        limit = 63 if self.reduce_range else 127
        if self.algorithm == "gptq":
            before, left = round_weights(model, decision.layers, compilation, limit)
        if self.correct_bias:
            facts["corrected"] = correct_biases(
                model, decision.layers, before, compilation, per_channel=self.per_channel, limit=limit
            )
        return left

    def _check_rounding(self) -> None:
        allowed = ("rtn", "gptq") if self.type == "int8" and self.per_channel else ("rtn",)
        if self.algorithm not in allowed:
            what = self.type if self.per_channel else f"{self.type} per tensor"
            raise InputError(
                f"quantize: no rounding '{self.algorithm}' for {what}: it is one of {', '.join(allowed)}"
            )

    def _improve(self, model: ir.Model, compilation: Compilation, facts: dict[str, Any]) -> None:
        """Exact changes of the float model that make it lose less in 8 bits."""
        if self.equalize:
            facts["equalized"] = equalize_convolutions(model)
        if self.smooth:
            facts["smoothed"] = smooth_activations(model, compilation, self.smooth)
