"""int4 and int8-weights: the weights of matrix products in blocks of 4-bit or 8-bit numbers."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import TYPE_CHECKING

import onnx_ir as ir

from sparsecc.compilation import Compilation
from sparsecc.passes.base import PassResult
from sparsecc.passes.quantize.kind import Kind
from sparsecc.passes.quantize.weight_only import NAMES, WeightOnlyOptions, int4_layers, quantize_weights
from sparsecc.passes.quantize.what_pays import Paying, grouped, what_pays
from sparsecc.plan import Plan

if TYPE_CHECKING:
    from sparsecc.passes.quantize.quantize import Quantize


class Int4(Kind):
    """Weights alone; with `eora` a low-rank path beside each layer takes back some of what rounding lost."""

    own = frozenset({"eora"})
    folds_batch_norms = False
    advice = "--quantize-option algorithm=gptq rounds by outputs, --quantize mixed takes types apart"

    def needs_data(self, options: Quantize) -> str:
        if _rounding(options).algorithm in ("gptq", "awq") or options.eora:
            return f"{options.type} with {'eora' if options.eora else options.algorithm}"
        return super().needs_data(options)

    def convert(self, options: Quantize, model: ir.Model, plan: Plan, compilation: Compilation) -> PassResult:
        paying = _paying(options, model, compilation) if options.only_what_pays else None
        exclude = (*options.exclude, *(paying.left if paying else ()))
        result = quantize_weights(model, plan, compilation, _rounding(options), exclude)
        return paying.told(result) if paying else result


def _paying(options: Quantize, model: ir.Model, compilation: Compilation) -> Paying:
    """Which layers stay in float because they would be no faster. All pay where nothing is timed, and in decoders with
    caches: these make one token at a time, for which reading the weights is what takes time."""
    if compilation.has_begun and compilation.text is not None:
        return Paying(facts={"how": "decoder", "left_in_float": []})
    plain = replace(_rounding(options), algorithm="rtn", eora=0.0)

    def written(left: Collection[str]) -> ir.Model:
        clone = model.clone()
        quantize_weights(clone, Plan({}), compilation, plain, (*options.exclude, *left))
        return clone

    to_onnxruntime = compilation.target.dialect == "onnxruntime"
    layers, _ = int4_layers(model, plain, options.exclude, to_onnxruntime)
    groups = grouped(layers, options.force, lambda layer: False)
    return what_pays(options.type, groups, written, model, options.exclude, compilation)


def _rounding(options: Quantize) -> WeightOnlyOptions:
    bits = next(bits for bits, name in NAMES.items() if name == options.type)
    in_bodies = options.algorithm in ("rtn", "kquant") and not options.eora
    return WeightOnlyOptions(
        options.algorithm, options.block, eora=options.eora, bits=bits, in_bodies=in_bodies
    )
