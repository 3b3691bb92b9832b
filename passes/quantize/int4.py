"""int4: the weights of matrix products in blocks of 4-bit numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir

from sparsecc.compilation import Compilation
from sparsecc.passes.base import PassResult
from sparsecc.passes.quantize.kind import Kind
from sparsecc.passes.quantize.weight_only import WeightOnlyOptions, quantize_weights

if TYPE_CHECKING:
    from sparsecc.passes.quantize.quantize import Quantize
    from sparsecc.plan import Plan


class Int4(Kind):
    """Weights alone; with `eora` a low-rank path beside each layer takes back some of what rounding lost."""

    own = frozenset({"eora"})
    folds_batch_norms = False
    advice = "--quantize-option algorithm=gptq rounds by outputs, --quantize mixed takes types apart"

    def needs_data(self, options: Quantize) -> str:
        if _rounding(options).algorithm != "rtn" or options.eora:
            return f"int4 with {'eora' if options.eora else options.algorithm}"
        return super().needs_data(options)

    def convert(self, options: Quantize, model: ir.Model, plan: Plan, compilation: Compilation) -> PassResult:
        return quantize_weights(model, plan, compilation, _rounding(options), options.exclude)


def _rounding(options: Quantize) -> WeightOnlyOptions:
    return WeightOnlyOptions(options.algorithm, options.block, eora=options.eora)
