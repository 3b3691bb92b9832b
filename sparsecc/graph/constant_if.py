"""If whose condition is known: its branch takes its place, so that slots flow through it."""

from __future__ import annotations

import onnx_ir as ir

from sparsecc.ir.subgraphs import bodies_of
from sparsecc.rules import Trait, shapes_of, traits_of
from sparsecc.shapes.candidates import Dims
from sparsecc.shapes.infer import Shapes, infer

MAX_ROUNDS = 8
"""A branch may hold another If; each round of shape inference takes the outermost ones that are known."""


def take_known_branches(model: ir.Model, dims: Dims | None = None) -> int:
    """Replace every If whose condition is the same for all inputs. Returns how many.

    Names and constants are those of `sparsecc.ir.subgraphs.one_scope`.
    """
    taken = 0
    for _ in range(MAX_ROUNDS):
        candidates = [n for n in model.graph.all_nodes() if n.op_type == "If" and n.domain == ""]
        if not candidates:
            break
        shapes = infer(model, shapes_of, dims)
        known = [(n, shapes.array(n.inputs[0])) for n in candidates if _is_certain(n.inputs[0], shapes)]
        chosen = [(n, bool(array.all())) for n, array in known if array is not None and array.size == 1]
        for node, condition in chosen:
            _take(node, "then_branch" if condition else "else_branch")
        taken += len(chosen)
        if not chosen:
            break
    return taken


_EXACT = frozenset(
    """Add Cast Concat Gather Identity Neg Not Reshape Shape Size Slice Squeeze Sub Transpose Unsqueeze""".split()
)
"""Operators whose result is static only where what it is made of is. Comparisons, minima and divisions are not:
they can agree at all probes and differ elsewhere, so all they read must be static."""


def _is_certain(value: ir.Value | None, shapes: Shapes) -> bool:
    """Whether a static value is so for every input, not just at the sizes that were tried."""
    pending, seen = [value], {value}
    while pending:
        top = pending.pop()
        node = top.producer() if top is not None else None
        if node is None:
            continue
        if node.op_type not in _EXACT and any(v is not None and shapes.array(v) is None for v in node.inputs):
            return False
        if not traits_of(node) & Trait.COUNTS:
            pending.extend(v for v in node.inputs if v not in seen)
            seen.update(node.inputs)
    return True


def _take(node: ir.Node, branch_name: str) -> None:
    graph, branch = node.graph, node.attributes[branch_name].as_graph()
    assert isinstance(graph, ir.Graph)
    outputs = list(branch.outputs)
    branch.outputs.clear()
    for inner in list(branch):
        branch.remove(inner)
        graph.insert_before(node, inner)
    for old, new in zip(node.outputs, outputs, strict=True):
        _replace(graph, node, old, new)
    graph.remove(node, safe=True)
    for other in bodies_of(node):  # nobody runs what is left there, so it reads nothing
        for inner in other.all_nodes():
            for place in range(len(inner.inputs)):
                inner.replace_input_with(place, None)


def _replace(graph: ir.Graph, node: ir.Node, old: ir.Value, new: ir.Value) -> None:
    """Readers of an output read what the branch gave; a graph output keeps its name."""
    if old.is_graph_output():
        carrier = ir.node("Identity", [new], name=f"{node.name}.taken")
        graph.insert_before(node, carrier)
        new = carrier.outputs[0]
        new.type, new.shape = old.type, old.shape
        new.name, old.name = old.name, f"{old.name}.untaken"
    old.replace_all_uses_with(new, replace_graph_outputs=True)
