"""int8-dynamic: weights in 8 bits, activations rounded at run time by their range then."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir

from sparsecc.compilation import Compilation
from sparsecc.passes.base import PassResult
from sparsecc.passes.quantize.dynamic import quantize_dynamic
from sparsecc.passes.quantize.kind import Kind

if TYPE_CHECKING:
    from sparsecc.passes.quantize.quantize import Quantize
    from sparsecc.plan import Plan


class DynamicInt8(Kind):
    """Matrix products and LSTMs as integer operators that need no calibration."""

    def convert(self, options: Quantize, model: ir.Model, plan: Plan, compilation: Compilation) -> PassResult:
        return quantize_dynamic(model, plan, compilation, options.exclude, reduce_range=options.reduce_range)
