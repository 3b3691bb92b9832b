"""Go on with fewer tokens: those patches of an image that the class token attends to most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import onnx_ir as ir

from sparsecc.axes.algebra import atoms_of
from sparsecc.compilation import Compilation
from sparsecc.errors import InputError
from sparsecc.graph.rewrite import remove
from sparsecc.ir.constants import add_constant
from sparsecc.passes.base import Pass, PassResult

if TYPE_CHECKING:
    from sparsecc.plan import Plan

PREFIX = "sparsecc.tokens"


@dataclass(frozen=True)
class ReduceTokens(Pass):
    """Behind the value `stream` (batch, tokens, width), keep the first `first` tokens and `keep` of `patches` others.

    These are chosen for each image: the ones with the largest mean over heads of the class token's row in the
    result of the Softmax node `attention` (batch, heads, tokens, tokens), in their order. After FlowCut (2025),
    with a fixed number in one place.
    """

    name: ClassVar[str] = "reduce_tokens"
    stream: str = ""
    attention: str = ""
    first: int = 1
    patches: int = 1
    keep: int = 1

    def run(self, model: ir.Model, plan: Plan, compilation: Compilation) -> PassResult:
        """Edit the model: first all tokens go on, then the sizes of all that follows are mended."""
        builder = _Builder(model, self)
        chosen = builder.insert()
        analysis = compilation.analysed(model)
        (atom,) = atoms_of(analysis.record.axes[chosen][1])
        remove(analysis, {atom: np.arange(self.patches) < self.keep})
        builder.go_on_with(self.keep)
        return PassResult({"kept": self.keep, "of": self.patches, "behind": self.stream})


class _Builder:
    """Puts the choice of tokens behind the stream."""

    def __init__(self, model: ir.Model, asked: ReduceTokens) -> None:
        self.graph, self.first = model.graph, asked.first
        self.version = model.opset_imports.get("", 1)
        nodes = {node.name: node for node in self.graph}
        values = {value.name: value for node in self.graph for value in node.outputs}
        if asked.attention not in nodes or asked.stream not in values:
            raise InputError(f"there is no attention '{asked.attention}' before a stream '{asked.stream}'")
        self.stream, self.attention = values[asked.stream], nodes[asked.attention].outputs[0]
        self.number = self._ints("number", [asked.patches])
        producer = self.stream.producer()
        assert producer is not None
        self.last = producer

    def insert(self) -> ir.Value:
        """All tokens go on. The numbers of the patches that do: (batch, patches, 1)."""
        readers = list(self.stream.uses())
        row = self._make("Gather", self.attention, self._ints("class", 0), axis=2)
        scores = self._cut(self._mean_over_heads(row), self.first, None)
        best = self._make("TopK", scores, self.number, outputs=2, axis=1, largest=1)
        order = self._make("TopK", best.outputs[1], self.number, outputs=2, axis=1, largest=0)
        numbers = self._make("Unsqueeze", order, self._ints("axis", [2]))
        kept = self._make("GatherND", self._cut(self.stream, self.first, None), numbers, batch_dims=1)
        whole = self._make("Concat", self._cut(self.stream, 0, self.first), kept, axis=1).outputs[0]
        for use in readers:
            use.node.replace_input_with(use.idx, whole)
        return numbers.outputs[0]

    def go_on_with(self, number: int) -> None:
        """So many patches go on."""
        self.number.const_value = ir.Tensor(np.asarray([number], dtype=np.int64), name=self.number.name)

    def _mean_over_heads(self, row: ir.Node) -> ir.Node:
        if self.version < 18:
            return self._make("ReduceMean", row, axes=[1], keepdims=0)
        return self._make("ReduceMean", row, self._ints("heads", [1]), keepdims=0)

    def _cut(self, value: ir.Value | ir.Node, start: int, end: int | None) -> ir.Node:
        """Slots start:end of axis 1."""
        bounds = [start], [np.iinfo(np.int64).max if end is None else end], [1]
        return self._make("Slice", value, *(self._ints("bound", bound) for bound in bounds))

    def _ints(self, what: str, values: int | list[int]) -> ir.Value:
        name = f"{PREFIX}.{what}.{len(self.graph.initializers)}"
        return add_constant(self.graph, name, np.asarray(values, dtype=np.int64))

    def _make(self, operator: str, *inputs: ir.Value | ir.Node, outputs: int = 1, **given: Any) -> ir.Node:
        """A node behind the last one; a node among the inputs stands for its first output."""
        values = [v.outputs[0] if isinstance(v, ir.Node) else v for v in inputs]
        made = ir.node(operator, values, attributes=given or None, num_outputs=outputs)
        made.name = f"{PREFIX}.{operator}.{len(self.graph)}"
        for place, value in enumerate(made.outputs):
            value.name = f"{made.name}.{place}"
        self.graph.insert_after(self.last, made)
        self.last = made
        return made
