"""Which passes a compile runs after pruning, in order."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sparsecc.errors import InputError
from sparsecc.options import CompileOptions
from sparsecc.targets import target_named

if TYPE_CHECKING:
    from sparsecc.passes.base import Pass


def passes_for(options: CompileOptions) -> list[Pass]:
    """Patterns first, then types: zeros stay exact zeros through quantization."""
    target = target_named(options.target)
    passes: list[Pass] = []
    if options.sparsity:
        from sparsecc.passes.sparsity import Sparsify

        passes.append(Sparsify(pattern=options.sparsity))
    if options.quantize:
        if options.quantize not in target.types:
            known = ", ".join(sorted(target.types))
            raise InputError(f"target {target.name} does not run {options.quantize}: it has {known}")
        from sparsecc.passes.quantize import Quantize

        passes.append(Quantize(type=options.quantize))
    return passes
