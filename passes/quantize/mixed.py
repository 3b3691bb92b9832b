"""mixed: a type for every layer, under a budget of bytes, time or loss."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir

from sparsecc.compilation import Compilation
from sparsecc.passes.base import PassResult
from sparsecc.passes.quantize.by_hand import FLOAT, read_layers
from sparsecc.passes.quantize.int8 import static_options
from sparsecc.passes.quantize.kind import Kind
from sparsecc.passes.quantize.mixed_precision import MixOptions, mix_types

if TYPE_CHECKING:
    from sparsecc.passes.quantize.quantize import Quantize
    from sparsecc.plan import Plan


class Mixed(Kind):
    """Of the types asked for, beside float, the ones that lose least in all."""

    own = frozenset({"size", "speedup", "types", "layers"})
    stores_tables = False
    advice = "allow more bytes or time, or bound the loss with --quantize-option max_drop=0.01"
    keeps_loss = True

    def types(self, options: Quantize) -> tuple[str, ...]:
        by_hand = {form.partition("/")[0] for _, form in read_layers(options.layers)} - {FLOAT}
        return options.types or tuple(sorted(by_hand)) or ("int8", "int4")

    def needs_data(self, options: Quantize) -> str:
        return options.type

    def convert(self, options: Quantize, model: ir.Model, plan: Plan, compilation: Compilation) -> PassResult:
        types = self.types(options)
        mix = MixOptions(
            types,
            static_options(options, "fp8" if "fp8" in types else "int8"),
            options.size,
            options.speedup,
            options.max_drop,
            options.algorithm,
            options.exclude,
            options.rest,
            options.keep_io,
            options.layers,
        )
        return mix_types(model, plan, compilation, mix)
