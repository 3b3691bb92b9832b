"""fp16 and bf16: every float tensor that may be half is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir

from sparsecc.compilation import Compilation
from sparsecc.passes.base import PassResult
from sparsecc.passes.quantize.float16 import convert_to_half
from sparsecc.passes.quantize.kind import Kind

if TYPE_CHECKING:
    from sparsecc.passes.quantize.quantize import Quantize
    from sparsecc.plan import Plan


class Half(Kind):
    """Every float tensor in the type of that name; `keep_io` leaves inputs and outputs in float32."""

    folds_batch_norms = False
    leaves_rest = False
    stores_tables = False

    def convert(self, options: Quantize, model: ir.Model, plan: Plan, compilation: Compilation) -> PassResult:
        return convert_to_half(
            model, plan, compilation, options.type, options.exclude, keep_io=options.keep_io
        )
