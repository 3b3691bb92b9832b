"""What one type of `--quantize` is: a file of its own, a row in `KINDS` (passes/quantize/quantize.py)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir

from sparsecc.compilation import Compilation
from sparsecc.passes.base import PassResult

if TYPE_CHECKING:
    from sparsecc.passes.quantize.quantize import Quantize
    from sparsecc.plan import Plan


class Kind:
    """A type, as the pass `Quantize` asks it; `options` are the fields of that pass."""

    own: frozenset[str] = frozenset()
    """Options that are of use to it alone."""
    folds_batch_norms: bool = True
    """Whether batch norms are folded first: between 8-bit layers they would work in float."""
    leaves_rest: bool = True
    """Whether it leaves layers in float that `rest` may give a type, and leaves models alone that have integers."""
    stores_tables: bool = True
    """Whether embedding tables become 8 bits, where the target looks rows of such up."""
    lifts: bool = False
    """Whether models in Q/DQ are taken apart and written anew: it uses their ranges."""
    keeps_loss: bool = False
    """Whether it leaves layers in float to stay within `max_drop`; others are refused when they lose more."""

    advice: str = "--quantize-option exclude=LAYER,type:OPERATOR leaves what is sensitive in float32"
    """What to do where a result is of doubtful use."""

    def types(self, options: Quantize) -> tuple[str, ...]:
        """What the target must run."""
        return (options.type,)

    def require(self, options: Quantize) -> None:
        """InputError for options that do not go together."""

    def needs_data(self, options: Quantize) -> str:
        """What of the options needs calibration data; empty where nothing does."""
        return "max_drop" if options.max_drop is not None else ""

    def convert(self, options: Quantize, model: ir.Model, plan: Plan, compilation: Compilation) -> PassResult:
        """Quantize in place."""
        raise NotImplementedError
