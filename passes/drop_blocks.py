"""Leave whole layers out: rewire the model past branches that end in an Add, and remove what nobody reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import onnx_ir as ir

from sparsecc.compilation import Compilation
from sparsecc.errors import InputError
from sparsecc.graph.caches import caches, hand_back
from sparsecc.graph.residual_blocks import goes_with
from sparsecc.passes.base import Pass, PassResult

if TYPE_CHECKING:
    from sparsecc.plan import Plan


@dataclass(frozen=True)
class DropBlocks(Pass):
    """Drop the branches of these Adds, each `NODE:OPERAND` where the operand is what the branch adds.

    y = x + f(x) becomes y = x. It runs before channels are looked at: afterwards the model is analysed anew.
    """

    name: ClassVar[str] = "drop_blocks"
    branches: tuple[str, ...] = ()

    def run(self, model: ir.Model, plan: Plan, compilation: Compilation) -> PassResult:
        """Edit the model, and list the nodes that are gone in `plan.dropped_nodes`."""
        gone = drop(model, self.branches)
        plan.dropped_nodes.extend(gone)
        return PassResult(facts={"branches": len(self.branches), "nodes": len(gone)})


def drop(model: ir.Model, branches: Sequence[str]) -> list[str]:
    """The names of all nodes that are gone. InputError for a branch that is not in the model."""
    graph = model.graph
    before = {node: node.name or "" for node in graph}
    named = {name: node for node, name in before.items()}
    ends = []
    for branch in branches:
        name, _, operand = branch.rpartition(":")
        if name not in named or operand not in ("0", "1") or len(named[name].inputs) != 2:
            raise InputError(f"there is no branch '{branch}': write NODE:OPERAND of an Add of two")
        ends.append((named[name], int(operand)))
    for add, place in ends:
        if add.graph is graph:  # it may have gone with a branch around it
            _bypass(graph, add, place)
    left = set(graph)
    _forget_unread(graph)
    return [name for node, name in before.items() if node not in left]


def _bypass(graph: ir.Graph, add: ir.Node, operand: int) -> None:
    going = goes_with((add, operand))
    for cache in caches(graph):
        if cache.node in going:
            hand_back(cache)
    entry, old = add.inputs[1 - operand], add.outputs[0]
    assert entry is not None
    if old.is_graph_output():  # an output keeps its name
        carrier = ir.node("Identity", [entry], name=f"{add.name}.kept")
        graph.insert_before(add, carrier)
        entry = carrier.outputs[0]
        entry.type, entry.shape = old.type, old.shape
        entry.name, old.name = old.name, f"{old.name}.dropped"
    old.replace_all_uses_with(entry, replace_graph_outputs=True)
    graph.remove([add, *going], safe=True)


def _forget_unread(graph: ir.Graph) -> None:
    """Initializers without a reader go; those that are graph inputs or outputs stay."""
    for value in list(graph.initializers.values()):
        if not value.uses() and not value.is_graph_output() and not value.is_graph_input():
            graph.initializers.pop(value.name or "")
