"""The pass behind `--quantize`: what its types have in common. Each type is a file of its own, in `KINDS`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, ClassVar

import onnx_ir as ir

from sparsecc.compilation import Compilation
from sparsecc.errors import GoalError, InputError
from sparsecc.graph.patterns import nodes_named, require_nodes
from sparsecc.ir.constants import share_equal
from sparsecc.ir.graph_editor import prepare
from sparsecc.passes.base import Pass, PassResult, require_data
from sparsecc.passes.quantize.block_float import BlockFloat
from sparsecc.passes.quantize.by_hand import read_layers
from sparsecc.passes.quantize.embeddings import Tables, quantize_tables
from sparsecc.passes.quantize.float16 import HALF_TYPES, convert_to_half
from sparsecc.passes.quantize.fold_batch_norms import fold_batch_norms
from sparsecc.passes.quantize.fold_gemm import fold_gemm_factors
from sparsecc.passes.quantize.half import Half
from sparsecc.passes.quantize.int4 import Int4
from sparsecc.passes.quantize.int8 import Static
from sparsecc.passes.quantize.int8_dynamic import DynamicInt8
from sparsecc.passes.quantize.kind import Kind
from sparsecc.passes.quantize.lift import has_pairs
from sparsecc.passes.quantize.mixed import Mixed
from sparsecc.passes.quantize.runtime_fusions import suit_kernels
from sparsecc.passes.quantize.static import already_quantized, has_float_layers
from sparsecc.passes.quantize.stopwatch import Stopwatch, is_timed
from sparsecc.passes.quantize.underflow import UNDERFLOW, too_small
from sparsecc.passes.quantize.what_pays import KEPT
from sparsecc.passes.quantize.widen_half import widen_half
from sparsecc.passes.weights.fidelity import fidelity, float_outputs
from sparsecc.passes.weights.low_rank import require_share
from sparsecc.plan import Plan
from sparsecc.remarks import Remark

if TYPE_CHECKING:
    from sparsecc.targets import Target

SCHEMES = ("auto", "qdq", "qoperator")

KINDS: dict[str, Kind] = {
    "int8": Static(),
    "fp8": Static(),
    "int8-dynamic": DynamicInt8(),
    "int4": Int4(),
    "int8-weights": Int4(),
    "nvfp4": BlockFloat(),
    "mxfp8": BlockFloat(),
    "fp16": Half(),
    "bf16": Half(),
    "mixed": Mixed(),
}
"""Type -> what it does."""


@dataclass(frozen=True)
class Quantize(Pass):
    """Give a model fewer bits, in the form that the target's kernels accelerate.

    type: int8 | int8-dynamic | int8-weights | int4 | fp16 | bf16 | fp8 | nvfp4 | mxfp8 | mixed.
    method: how int8 and fp8 activation ranges are chosen: minmax, percentile, entropy, mse.
    scheme: auto picks what the target runs fastest; qdq only standard operators; qoperator integer operators.
    reduce_range: 7-bit weights, for x64 processors without VNNI.
    algorithm: how weights are rounded: rtn to nearest; kquant (int4) with the scale per block that loses least; gptq
    by what it does to the layer's output (int8 and int4, needs data); awq (int4) scales inputs first. block: inputs
    per scale of int4 and int8-weights. eora: the share of a layer's time that a low-rank path beside an int4 layer may
    add.
    smooth: SmoothQuant's alpha, 0 for none. equalize: cross-layer equalisation. correct_bias: the bias
    takes back the mean error of rounded weights.
    max_drop: relative output error that is allowed on the calibration data. int8 and fp8 leave the layers
    that cost most in float for it; with the other types the compile is refused when it is more.
    size: bytes that a mixed model may have; speedup: how many times as fast as in float it must run here.
    types: what it is mixed of, beside float; all that the target has. layers: PATTERN=TYPE, the types by hand.
    exclude: the layers left in float; force: those that are quantized though they do not pay (see `nodes_named`).
    only_what_pays: whether integers leave layers in float that they make no faster.
    keep_io: fp16 and bf16 keep float32 inputs and outputs; false is refused.
    rest: fp16 or bf16 for what int8, int4, fp8, nvfp4 and mxfp8 leave in float; "" leaves it in float32.
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
    force: tuple[str, ...] = ()
    keep_io: bool = True
    rest: str = ""
    eora: float = 0.0
    size: float | None = None
    speedup: float | None = None
    types: tuple[str, ...] = ()
    layers: tuple[str, ...] = ()
    only_what_pays: bool = False

    @property
    def kind(self) -> Kind:
        """What this type does. InputError where there is none of its name."""
        if self.type not in KINDS:
            raise InputError(f"quantize: unknown type '{self.type}': it is one of {', '.join(KINDS)}")
        return KINDS[self.type]

    @property
    def only_rounds(self) -> bool:
        return True

    def run(self, model: ir.Model, plan: Plan, compilation: Compilation) -> PassResult:
        """Quantize in place. InputError when the target lacks the type or calibration data is missing."""
        self.require(compilation.target, has_data=bool(compilation.pass_feeds or compilation.options.ranges))
        prepare(model)
        exclude, force = (tuple(nodes_named(model, names)) for names in (self.exclude, self.force))
        return replace(self, exclude=exclude, force=force)._run(model, plan, compilation)

    def _run(self, model: ir.Model, plan: Plan, compilation: Compilation) -> PassResult:
        """With the names of nodes in `exclude` and `force`."""
        kind = self.kind
        skip = already_quantized(model) if kind.leaves_rest else None
        if skip is not None and not has_float_layers(model) and not (kind.lifts and has_pairs(model)):
            return PassResult({"type": self.type, "nodes": []}, (skip,))
        before, original = float_outputs(model, compilation), model.clone()
        widened = widen_half(model) if kind.leaves_rest else None
        if kind.leaves_rest:
            fold_gemm_factors(model)
            if compilation.target.dialect == "onnxruntime" and compilation.target.device == "cpu":
                suit_kernels(model)
        folded, left = fold_batch_norms(model) if kind.folds_batch_norms else (0, [])
        tiny = too_small(model) if kind.leaves_rest else ()
        given = replace(self, exclude=(*self.exclude, *tiny))
        options = given._without_slow_tables(model, compilation)
        tables = (
            quantize_tables(model, plan, options.exclude) if self._stores_tables(compilation) else Tables()
        )
        result = kind.convert(options, model, plan, compilation)
        result = given._convert_rest(result, model, plan, compilation, was_half=widened is not None)
        if widened is not None:
            widened.store_halves()
        if not (result.facts["nodes"] or tables.nodes or result.facts.get("rest")):
            model.graph, folded, left = original.graph, 0, []  # nothing is folded or made newer for nothing
            result.facts.pop("lifted", None)
            result = replace(result, in_float=None)
        elif "bytes" not in result.facts:  # the size that mixed was held to is that of its graph as it is
            share_equal(model)
        lost = fidelity(model, before, compilation, kind.advice)
        if not kind.keeps_loss:
            self._refuse_loss(lost.get("output_quality_db") or {})
        warnings = [*result.facts.pop("warnings", []), *lost.pop("warnings", [])]
        facts = {
            **result.facts,
            **lost,
            **(
                {"tables": tables.noise, "nodes": [*result.facts["nodes"], *tables.nodes]}
                if tables.noise
                else {}
            ),
            **({"folded_batch_norms": folded} if folded else {}),
            "warnings": warnings,
        }
        kept = [] if skip is None or "lifted" in facts else [skip]
        others = [one for one in (*left, *tables.remarks, *result.remarks) if one.where not in tiny]
        underflow = [Remark(name, UNDERFLOW) for name in tiny]
        return replace(result, facts=facts, remarks=(*kept, *underflow, *others))

    def require(self, target: Target, *, has_data: bool) -> None:
        kind = self.kind
        for type_ in (*kind.types(self), *([self.rest] if self.rest else [])):
            if type_ not in target.types:
                raise InputError(
                    f"quantize: target '{target.name}' does not accelerate '{type_}': "
                    f"it has {', '.join(sorted(target.types))}"
                )
        if self.rest and (self.rest not in HALF_TYPES or not kind.leaves_rest):
            raise InputError(
                f"quantize: rest '{self.rest}' beside '{self.type}': "
                f"rest is one of {', '.join(HALF_TYPES)}, beside int8, int4, fp8, nvfp4 or mxfp8"
            )
        if not self.keep_io:
            raise InputError(
                "quantize: keep_io=false: samples, and the model it is compared with, have float32 inputs: "
                "leave it true, and put the casts where the model is used"
            )
        require_share(self.eora)
        self._require_use()
        if self.scheme not in SCHEMES:
            raise InputError(f"quantize: unknown scheme '{self.scheme}': it is one of {', '.join(SCHEMES)}")
        kind.require(self)
        if what := kind.needs_data(self):
            require_data(what, has_data=has_data)

    def require_names(self, model: ir.Model) -> None:
        for name in ("exclude", "force"):
            require_nodes(model, f"--quantize-option {name}", getattr(self, name))
        patterns = [pattern for pattern, _ in read_layers(self.layers)]
        require_nodes(model, "--quantize-option layers", patterns)

    def _require_use(self) -> None:
        """InputError for an option that only another type has."""
        given = {f.name for f in fields(self) if getattr(self, f.name) != f.default}
        for type_, kind in KINDS.items():
            for option in sorted(given & kind.own - self.kind.own):
                raise InputError(f"quantize: {option} does nothing for {self.type}: it is for {type_}")

    def _stores_tables(self, compilation: Compilation) -> bool:
        """Whether embedding tables become 8 bits."""
        return (
            self.kind.stores_tables and compilation.target.dialect == "onnxruntime" and self.scheme == "auto"
        )

    def _without_slow_tables(self, model: ir.Model, compilation: Compilation) -> Quantize:
        """These options, with tables excluded where the model is slower with them: rows are made float one by one."""
        if not (self.only_what_pays and self._stores_tables(compilation) and is_timed(compilation)):
            return self
        changed = model.clone()
        nodes = [
            name for name in quantize_tables(changed, Plan({}), self.exclude).nodes if name not in self.force
        ]
        if not nodes:
            return self
        watch = Stopwatch(compilation, model)
        is_slow = math.exp(-watch.ratio(watch.in_float, watch.file(changed)).high) < KEPT
        return replace(self, exclude=(*self.exclude, *nodes)) if is_slow else self

    def _convert_rest(
        self, result: PassResult, model: ir.Model, plan: Plan, compilation: Compilation, *, was_half: bool
    ) -> PassResult:
        """What `rest` asks for; what was fp16 stays it where the target runs it faster."""
        rest = self.rest or ("fp16" if was_half and compilation.target.dialect == "tensorrt" else "")
        if not rest:
            return result
        done = convert_to_half(model, plan, compilation, rest, self.exclude, keep_io=self.keep_io)
        warnings = [*result.facts.pop("warnings", []), *done.facts.pop("warnings", [])]
        facts = {**result.facts, "rest": done.facts, "warnings": warnings}
        return PassResult(facts, (*result.remarks, *done.remarks))

    def _refuse_loss(self, kept: Mapping[str, float]) -> None:
        """GoalError when an output lost more than `max_drop`."""
        if self.max_drop is None:
            return
        for output, ratio in kept.items():
            lost = 10 ** (-ratio / 10)
            if lost > self.max_drop:
                raise GoalError(
                    f"quantize: output '{output}' loses {lost:.2%} to {self.type}, over {self.max_drop:.2%}: "
                    "allow more, or leave sensitive nodes out with exclude"
                )
