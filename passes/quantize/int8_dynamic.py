"""int8-dynamic: weights in 8 bits, activations rounded at run time by their range then."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import TYPE_CHECKING

import onnx_ir as ir

from sparsecc.compilation import Compilation
from sparsecc.passes.base import PassResult
from sparsecc.passes.quantize.dynamic import dynamic_layers, quantize_dynamic
from sparsecc.passes.quantize.kind import Kind
from sparsecc.passes.quantize.what_pays import Group, Paying, grouped, what_pays
from sparsecc.plan import Plan

if TYPE_CHECKING:
    from sparsecc.passes.quantize.quantize import Quantize


class DynamicInt8(Kind):
    """Matrix products and LSTMs as integer operators that need no calibration."""

    def convert(self, options: Quantize, model: ir.Model, plan: Plan, compilation: Compilation) -> PassResult:
        paying = _paying(options, model, compilation) if options.only_what_pays else None
        exclude = (*options.exclude, *(paying.left if paying else ()))
        result = quantize_dynamic(model, plan, compilation, exclude, reduce_range=options.reduce_range)
        return paying.told(result) if paying else result


def _paying(options: Quantize, model: ir.Model, compilation: Compilation) -> Paying:
    """Which layers stay in float because they would be no faster: each rounds what it reads by itself."""

    def written(left: Collection[str]) -> ir.Model:
        clone, exclude = model.clone(), (*options.exclude, *left)
        quantize_dynamic(clone, Plan({}), compilation, exclude, reduce_range=options.reduce_range)
        return clone

    layers, lstms, _ = dynamic_layers(model, options.exclude)
    groups = grouped(layers, options.force, lambda layer: True)
    names = tuple(node.name or "" for node in lstms if node.name not in options.force)
    groups += [Group("LSTMs", names, math.inf, False)] if names else []
    return what_pays(options.type, groups, written, model, options.exclude, compilation)
