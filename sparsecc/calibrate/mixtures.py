"""Where a mixture of experts has its router's scores, the experts it chose, their gate weights and outputs.

Experts that nodes of their own choose (TopK, then Gather from stacked weights) are found by what flows from the
choice: gate weights on one side, what the picked weights make of the input on the other, until both meet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import onnx_ir as ir

from sparsecc.axes.algebra import Axis, atoms_of
from sparsecc.axes.sizes import Size, product
from sparsecc.graph.analysis import Analysis
from sparsecc.rules import Trait, traits_of
from sparsecc.rules.select import STACKED

Read = Callable[[str], np.ndarray]
"""The value of that name on the batch that is looked at."""


@dataclass(frozen=True)
class Inner:
    """The width between the layers of the experts: `weight` is the stack of matrices that sums over it.

    `expert` and `slot` are the positions of both axes in the stack. `value` is the activation, `at` its axis;
    inside an operator they have no name.
    """

    axis: Axis
    weight: ir.Value
    expert: int
    slot: int
    value: str = ""
    at: int = -1

    def energy(self) -> np.ndarray:
        """Squared norm of what each slot of each expert is multiplied by: (experts, slots)."""
        assert self.weight.const_value is not None
        array = np.moveaxis(self.weight.const_value.numpy(), (self.expert, self.slot), (0, 1))
        return np.stack([np.square(a.astype(np.float64).reshape(len(a), -1)).sum(axis=1) for a in array])


@dataclass(frozen=True)
class Seen:
    """One batch in a mixture: `scores` (tokens, experts), `chosen` and `gates` (tokens, k).

    `outputs` (tokens * k, width) are those of the chosen experts before they are weighted, `inner` the activations
    (tokens * k, slots) for each of the mixture's inner widths; None where that is not known.
    """

    scores: np.ndarray
    chosen: np.ndarray
    gates: np.ndarray
    outputs: np.ndarray | None
    inner: tuple[np.ndarray, ...]


class Mixture(Protocol):
    """A mixture: everything that `read` asks for is known when `node` is about to run.

    `names` are these values; `outputs` is that of the chosen experts before they are weighted, empty where it has no
    name.
    """

    @property
    def node(self) -> ir.Node: ...

    @property
    def experts(self) -> Axis: ...

    @property
    def inner(self) -> tuple[Inner, ...]: ...

    @property
    def outputs(self) -> str: ...

    @property
    def names(self) -> tuple[str, ...]: ...

    def read(self, value: Read) -> Seen: ...


@dataclass(frozen=True)
class Gathered:
    """A mixture of nodes. `node` is where gate weights meet the outputs of the experts."""

    node: ir.Node
    experts: Axis
    scores: str
    chosen: str
    gates: str
    outputs: str
    inner: tuple[Inner, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The values to hold until `node` runs."""
        return (self.scores, self.chosen, self.gates, self.outputs, *(i.value for i in self.inner))

    def read(self, value: Read) -> Seen:
        """The mixture's values on a batch."""
        chosen = value(self.chosen)
        chosen = chosen.reshape(-1, chosen.shape[-1])
        rows = [np.moveaxis(value(i.value), i.at, -1).reshape(chosen.size, -1) for i in self.inner]
        return Seen(
            scores=value(self.scores).reshape(len(chosen), -1),
            chosen=chosen,
            gates=value(self.gates).reshape(chosen.shape),
            outputs=value(self.outputs).reshape(chosen.size, -1),
            inner=tuple(rows),
        )


def gathered_mixtures(analysis: Analysis) -> list[Gathered]:
    """The mixtures whose experts are chosen by a TopK of the graph, in its order."""
    nodes = list(analysis.model.graph)
    found = []
    for place, node in enumerate(nodes):
        experts = analysis.record.numbers.get(node.outputs[1]) if node.op_type == "TopK" else None
        if experts is None or not any("expert" in atom.roles for atom in atoms_of(experts)):
            continue
        mixture = _Flow(analysis, node, experts).along(nodes[place + 1 :])
        if mixture is not None:
            found.append(mixture)
    return found


@dataclass
class _Flow:
    """What follows from a choice, node by node, until the gate weights meet the experts' outputs."""

    analysis: Analysis
    choice: ir.Node
    experts: Axis
    weights: set[ir.Value] = field(default_factory=set)
    made: set[ir.Value] = field(default_factory=set)
    gates: set[ir.Value] = field(default_factory=set)
    inner: list[Inner] = field(default_factory=list)

    def along(self, nodes: Iterable[ir.Node]) -> Gathered | None:
        self.gates.add(self.choice.outputs[0])
        for node in nodes:
            outputs = [v for v in node.inputs if v in self.made]
            gates = [v for v in node.inputs if v in self.gates]
            if outputs and gates:
                return self._met(node, outputs[0], gates[0])
            self._pass(node)
        return None

    def _pass(self, node: ir.Node) -> None:
        """`weights` are picked ones, `made` what they made of the input, `gates` all else that was chosen."""
        if traits_of(node) & Trait.COUNTS:
            return
        inputs = {v for v in node.inputs if v is not None}
        if self._picks(node):
            stacked = self.analysis.record.picked.intersection(node.outputs)
            (self.weights if stacked else self.gates).update(node.outputs)
        elif inputs & self.made or self._multiplies(node):
            self._note_inner(node)
            self.made.update(node.outputs)
        elif inputs & self.weights:
            self.weights.update(node.outputs)
        elif inputs & self.gates:
            self.gates.update(node.outputs)

    def _picks(self, node: ir.Node) -> bool:
        """Whether something is picked here by the numbers of the chosen experts."""
        if node.op_type not in ("Gather", "GatherND", "GatherElements"):
            return False
        numbered = self.analysis.record.numbers.get(node.inputs[1]) if node.inputs[1] is not None else None
        return numbered is not None and atoms_of(numbered) == atoms_of(self.experts)

    def _multiplies(self, node: ir.Node) -> bool:
        """Whether picked weights meet an activation."""
        known = self.weights | self.analysis.record.constant
        picked = any(v in self.weights for v in node.inputs)
        is_product = node.op_type == "Mul" or bool(traits_of(node) & Trait.PRODUCT)
        return is_product and picked and any(v not in known for v in node.inputs if v)

    def _note_inner(self, node: ir.Node) -> None:
        """Keep what picked weights sum over, if the experts made it."""
        stack = next((s for v in node.inputs if v in self.weights and (s := self._stack_of(v))), None)
        for reduction in self.analysis.record.reductions if stack is not None else ():
            value = node.inputs[reduction.operand] if reduction.node is node else None
            if value is None or value not in self.made or stack is None or not self._by_rows(value):
                continue
            weight, axes = stack
            at = reduction.positions[0]
            axis = self.analysis.record.axes[value][at]
            experts, slots = (
                [i for i, a in enumerate(axes) if atoms_of(a) == atoms_of(b)] for b in (self.experts, axis)
            )
            if len(axes) >= STACKED and len(experts) == len(slots) == 1:
                self.inner.append(Inner(axis, weight, experts[0], slots[0], value.name or "", at))

    def _stack_of(self, value: ir.Value | None) -> tuple[ir.Value, Sequence[Axis]] | None:
        """The initializer that weights were picked from, with the axes of that use."""
        while value is not None and (node := value.producer()) is not None:
            value = node.inputs[0]
            if value is not None and value.is_initializer():
                return value, self.analysis.record.uses[node, 0]
        return None

    def _met(self, node: ir.Node, output: ir.Value, gate: ir.Value) -> Gathered | None:
        found: ir.Value | None = gate
        while found is not None and not self._by_rows(found, exactly=True):
            maker = found.producer()
            found = maker.inputs[0] if maker is not None and found in self.gates and maker.inputs else None
        if found is None or not self._by_rows(output):
            return None
        numbers = self.choice.outputs[1]
        names = [v.name or "" for v in (self._scores(), numbers, found, output)]
        return Gathered(node, self.experts, names[0], names[1], names[2], names[3], tuple(self.inner))

    def _by_rows(self, value: ir.Value, *, exactly: bool = False) -> bool:
        """Whether a value has one row, or exactly one element, for each of the chosen numbers, in their order."""
        wanted, found = self._sizes(self.choice.outputs[1]), self._sizes(value)
        rows = (product(wanted),)
        if exactly:
            return found in (wanted, rows)
        return found[: len(wanted)] == wanted or found[:1] == rows

    def _sizes(self, value: ir.Value) -> tuple[Size, ...]:
        return tuple(axis.size for axis in self.analysis.record.axes.get(value, ()))

    def _scores(self) -> ir.Value:
        """The scores before they are made probabilities: what a Softmax or Sigmoid of all of them reads."""
        data = self.choice.inputs[0]
        assert data is not None
        for node in self.analysis.model.graph:
            axes = self.analysis.record.axes.get(node.outputs[0], []) if node.outputs else []
            if node.op_type not in ("Softmax", "Sigmoid") or not axes or node.inputs[0] is None:
                continue
            if atoms_of(axes[-1]) == atoms_of(self.experts) and axes[-1].size == self.experts.size:
                return node.inputs[0]
        return data
