"""Optimization passes, one per file. `PASSES` is the table of them; a row is loaded when it is asked for."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from sparsecc.errors import InputError

if TYPE_CHECKING:
    from sparsecc.passes.base import Pass

PASSES = {
    "drop_blocks": "sparsecc.passes.drop_blocks:DropBlocks",
    "fold_batchnorm": "sparsecc.passes.fold_batchnorm:FoldBatchNorm",
    "reduce_tokens": "sparsecc.passes.reduce_tokens:ReduceTokens",
    "sparsify": "sparsecc.passes.sparsity:Sparsify",
    "quantize": "sparsecc.passes.quantize:Quantize",
}
"""Name -> "module:class"."""


def pass_named(name: str) -> type[Pass]:
    """The class of a pass. InputError lists the names when there is none."""
    if name not in PASSES:
        raise InputError(f"unknown pass '{name}': passes are {', '.join(sorted(PASSES))}")
    module, _, attribute = PASSES[name].partition(":")
    found: type[Pass] = getattr(importlib.import_module(module), attribute)
    return found
