"""The dense model in which later attention does not see some tokens: what a model without them must compute.

Tokens meet only in attention, so the others come out as if these had never been there. Which tokens those are is
counted from the scores, not sorted, and no size changes: nothing is shared with the pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from sparsecc.ir.constants import add_constant


def unseen(model: ir.Model, tokens: Mapping[str, Any]) -> ir.Model:
    """A copy of a model in which the Softmaxes `tokens["later"]` see only the tokens that a plan keeps.

    `tokens` is that part of the plan: the Softmax `attention`, `first` tokens that stay, `kept` of the others.
    """
    twin = model.clone()
    nodes = {node.name: node for node in twin.graph}
    attention = nodes[tokens["attention"]]
    seen = _Blindfold(twin, attention).seen(tokens["first"], tokens["kept"])
    for name in tokens["later"]:
        softmax = nodes[name]
        logits = softmax.inputs[0]
        assert logits is not None
        hidden = _Blindfold(twin, softmax, before=True)
        nothing = hidden.constant(np.asarray(-np.inf, dtype=(logits.dtype or ir.DataType.FLOAT).numpy()))
        softmax.replace_input_with(0, hidden.make("Where", seen, logits, nothing))
    return twin


class _Blindfold:
    """Makes nodes behind (or before) a node."""

    def __init__(self, model: ir.Model, place: ir.Node, *, before: bool = False) -> None:
        self.graph, self.place, self.before = model.graph, place, before
        self.version = model.opset_imports.get("", 1)

    def seen(self, first: int, kept: int) -> ir.Value:
        """(batch, 1, 1, tokens): whether fewer than `kept` patches have a higher score, the earlier of equal ones
        counting as higher."""
        row = self.make("Gather", self.place.outputs[0], self.ints(0), axis=2)
        scores = self.make("Cast", self._mean_over_heads(row), to=int(ir.DataType.FLOAT))
        rivals, own = (self.make("Unsqueeze", scores, self.ints([axis])) for axis in (1, 2))
        ones = self.make("Cast", self.make("Equal", scores, scores), to=int(ir.DataType.FLOAT))
        places = self.make("CumSum", ones, self.ints(1))
        theirs, mine = (self.make("Unsqueeze", places, self.ints([axis])) for axis in (1, 2))
        is_patch = self.make("Greater", theirs, self.number(first))
        level = self.make("And", self.make("Equal", rivals, own), self.make("Less", theirs, mine))
        higher = self.make("And", self.make("Or", self.make("Greater", rivals, own), level), is_patch)
        counted = self.make("Cast", higher, to=int(ir.DataType.FLOAT))
        number = self.make("ReduceSum", counted, self.ints([2]), keepdims=0)
        chosen = self.make("Less", number, self.number(kept))
        stays = self.make("LessOrEqual", places, self.number(first))
        return self.make("Unsqueeze", self.make("Or", chosen, stays), self.ints([1, 2]))

    def _mean_over_heads(self, row: ir.Value) -> ir.Value:
        if self.version < 18:
            return self.make("ReduceMean", row, axes=[1], keepdims=0)
        return self.make("ReduceMean", row, self.ints([1]), keepdims=0)

    def ints(self, values: int | list[int]) -> ir.Value:
        """Axes or indices."""
        return self.constant(np.asarray(values, dtype=np.int64))

    def number(self, value: int) -> ir.Value:
        """A number to compare with, in single precision."""
        return self.constant(np.asarray(value, dtype=np.float32))

    def constant(self, array: np.ndarray) -> ir.Value:
        """An initializer."""
        return add_constant(self.graph, f"sparsecc.unseen.{len(self.graph.initializers)}", array)

    def make(self, operator: str, *inputs: ir.Value, **given: Any) -> ir.Value:
        """The result of a new node."""
        made = ir.node(operator, list(inputs), attributes=given or None)
        made.name = f"sparsecc.unseen.{operator}.{len(self.graph)}"
        made.outputs[0].name = f"{made.name}.0"
        if self.before:
            self.graph.insert_before(self.place, made)
        else:
            self.graph.insert_after(self.place, made)
            self.place = made
        return made.outputs[0]
