"""Logits of the last position alone: a decoder that reads a prompt needs no others, and its head is its widest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import onnx_ir as ir

from sparsecc.compilation import Compilation
from sparsecc.data.language import TextModel
from sparsecc.errors import InputError
from sparsecc.graph.vocabulary import product_of
from sparsecc.ir.constants import add_constant
from sparsecc.passes.base import Pass, PassResult

if TYPE_CHECKING:
    from sparsecc.plan import Plan


@dataclass(frozen=True)
class LastLogits(Pass):
    """Give the head (batch, 1, width) of what it reads: logits become (batch, 1, words).

    The head is the last product on the way to the logits; what lies between works slot by slot. InputError where the
    model is no decoder that takes text, or its logits are made in another way.
    """

    name: ClassVar[str] = "last_logits"

    def run(self, model: ir.Model, plan: Plan, compilation: Compilation) -> PassResult:
        head, logits = head_of(model, compilation.text)
        data = head.inputs[0]
        assert data is not None
        last = add_constant(model.graph, f"{head.name}.last", np.array([-1], dtype=np.int64))
        picked = ir.node("Gather", [data, last], name=f"{head.name}.last_position", attributes={"axis": 1})
        picked.outputs[0].name = f"{head.name}.last_position"
        picked.outputs[0].type = data.type
        model.graph.insert_before(head, picked)
        head.replace_input_with(0, picked.outputs[0])
        batch, _, words = list(logits.shape or (None, None, None))
        logits.shape = ir.Shape([batch, 1, words])
        return PassResult(facts={"head": head.name or ""})


def head_of(model: ir.Model, text: TextModel | None) -> tuple[ir.Node, ir.Value]:
    """(the product that makes the logits, the logits). InputError where there is none, and for other models."""
    if text is None:
        raise InputError("--last-logits is for decoders with caches that take tokens: leave it out")
    logits = next(v for v in model.graph.outputs if v.name == text.logits)
    made = product_of(logits)
    if made is None:
        raise InputError("--last-logits: the logits come out of no product with weights: leave it out")
    return made[0], logits
