"""Where the tokens of an image can become fewer: a class token attends to patches, and what follows treats all
tokens alike.

The attention is a Softmax over keys between two products, its heads in an axis of their own, in a branch of the
residual stream (batch, tokens, width). Behind the site, tokens may meet only in such attention, and nothing may
read a patch by its place: then a token that later attention does not see might as well not be there.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import onnx_ir as ir

from sparsecc.axes.algebra import Atom, Axis, atoms_of, parts_of
from sparsecc.graph.analysis import Analysis
from sparsecc.graph.residual_blocks import Branch, find_blocks
from sparsecc.ir.subgraphs import has_body
from sparsecc.rules import Trait, traits_of

DEPTH = 1 / 3
"""Behind so much of the attention layers tokens are left out."""

OLDEST = 13
"""The first opset whose operators say all that is needed: GatherND per image, Softmax over one axis."""

ALIKE = frozenset(
    """Concat Expand Flatten Gather Gemm LayerNormalization MatMul RMSNormalization Reshape Shape
    SimplifiedLayerNormalization Size SkipLayerNormalization Slice Softmax Split Squeeze Transpose Unsqueeze""".split()
)
"""Operators that treat all slots of an axis alike, but for what their reductions and indices say: these, and
those that work slot by slot."""


class CannotReduceError(Exception):
    """Tokens cannot be left out of this model: the node or value, and the reason."""

    def __init__(self, where: str | None, reason: str) -> None:
        super().__init__(reason)
        self.where = where or ""
        self.reason = reason


@dataclass(frozen=True)
class TokenSite:
    """Behind `stream`, the sum that the attention of layer `layer` of `layers` adds to, tokens can be left out.

    `attention` is that layer's Softmax (batch, heads, tokens, tokens), `later` are those behind it. The first
    `first` tokens stay, the very first is the class token; `patches` others follow.
    """

    attention: ir.Node
    stream: ir.Value
    later: tuple[ir.Node, ...]
    first: int
    patches: int
    layer: int
    layers: int


def find_site(analysis: Analysis) -> TokenSite:
    """The site behind a third of the attention layers. CannotReduceError says why there is none."""
    graph = analysis.model.graph
    if analysis.version < OLDEST:
        raise CannotReduceError(graph.name, f"it needs opset {OLDEST}, the model has {analysis.version}")
    layers = _layers(analysis)
    if not layers:
        reason = "no attention between a class token and patches whose number is known, with heads apart"
        raise CannotReduceError(graph.name, reason)
    number = math.ceil(DEPTH * len(layers))
    attention, branch = layers[number - 1]
    stream = branch.exit
    parts = parts_of(analysis.record.axes[stream][1])
    patches = parts[-1]
    assert isinstance(patches.size, int)
    first = _size(parts[:-1])
    later = _Behind(analysis, stream, patches, first).attentions()
    return TokenSite(attention, stream, later, first, patches.size, number, len(layers))


def _layers(analysis: Analysis) -> list[tuple[ir.Node, Branch]]:
    """Each attention over tokens with the innermost branch around it; all over the tokens of the first."""
    branches = [b.branches[0] for b in find_blocks(analysis) if len(b.branches) == 1]
    found: list[tuple[ir.Node, Branch]] = []
    tokens: Axis | None = None
    for node in analysis.model.graph:
        around = [b for b in branches if node in b.nodes] if node.op_type == "Softmax" else []
        if not around:
            continue
        branch = min(around, key=lambda b: len(b.nodes))
        axes, stream = analysis.record.axes[node.outputs[0]], analysis.record.axes[branch.exit]
        if len(axes) != 4 or len(stream) != 3 or not _is_over_keys(node) or not _has_class_token(stream[1]):
            continue
        tokens = tokens or stream[1]
        if all(_same(axis, tokens) for axis in (axes[2], axes[3], stream[1])):
            found.append((node, branch))
    return found


def _is_over_keys(node: ir.Node) -> bool:
    return node.attributes.get_int("axis", -1) in (-1, 3)


def _has_class_token(axis: Axis) -> bool:
    """A few slots, then more: a class token (and its like) side by side with patches."""
    parts = parts_of(axis)
    return (
        all(isinstance(part.size, int) for part in parts)
        and len(parts) > 1
        and _size(parts[:-1]) < _size(parts[-1:])
    )


def _size(parts: Iterable[Axis]) -> int:
    return sum(part.size for part in parts if isinstance(part.size, int))


def _source(value: ir.Value | None) -> ir.Node | None:
    """The node that computed a value, past those that hand it on, or hand on all of it that is a number."""
    node = value.producer() if value is not None else None
    while node is not None:
        if traits_of(node) & Trait.MOVES and traits_of(node) & Trait.SLOTWISE:
            value = node.inputs[0]
        elif node.op_type == "Where" and _op(node.inputs[0]) == "IsNaN":
            value = node.inputs[2]
        else:
            return node
        node = value.producer() if value is not None else None
    return None


def _op(value: ir.Value | None) -> str:
    node = value.producer() if value is not None else None
    return node.op_type if node is not None else ""


def _same(a: Axis, b: Axis) -> bool:
    """The same slots; axes of size 1 are not told apart."""
    return a.size == b.size and _counted(a) == _counted(b)


def _counted(axis: Axis) -> list[Atom]:
    return [atom for atom in atoms_of(axis) if atom.size != 1]


class _Behind:
    """All that follows from the stream, with how it treats the patches."""

    def __init__(self, analysis: Analysis, stream: ir.Value, patches: Axis, first: int) -> None:
        self.analysis, self.record = analysis, analysis.record
        self.stream, self.first = stream, first
        self.tokens = self.record.axes[stream][1]
        self.patches = set(_counted(patches))
        self.reached = {stream}
        self.found: list[ir.Node] = []
        self.sums = {(r.node, r.operand): r.positions for r in self.record.reductions}

    def attentions(self) -> tuple[ir.Node, ...]:
        """The Softmaxes over the tokens. CannotReduceError where tokens are not treated alike."""
        if not self.patches:  # single slots: something picks among them by number
            raise CannotReduceError(self.stream.name, "what picks tokens one by one has an entry per token")
        for node in self.analysis.model.graph:
            if not any(value in self.reached for value in node.inputs):
                continue
            self._look_at(node)
            self.reached.update(node.outputs)
        for value in self.analysis.model.graph.outputs:
            if value in self.reached and self._places(self.record.axes.get(value, [])):
                raise CannotReduceError(value.name, "an output has an entry per token")
        return tuple(self.found)

    def _look_at(self, node: ir.Node) -> None:
        if has_body(node) or node in self.record.unfollowed:
            raise CannotReduceError(node.name, f"{node.op_type} is not followed")
        holding = [i for i in range(len(node.inputs)) if self._places(self._axes(node, i))]
        if not holding:
            return
        if node.op_type not in ALIKE and not traits_of(node) & Trait.SLOTWISE:
            raise CannotReduceError(node.name, f"{node.op_type} may not treat all tokens alike")
        for operand in holding:
            self._require_from_here(node, operand)
            self._require_no_mixing(node, operand)
        if node.op_type == "Gather":
            self._require_early_pick(node)

    def _axes(self, node: ir.Node, operand: int) -> list[Axis]:
        value = node.inputs[operand]
        if value is None:
            return []
        return self.record.uses.get((node, operand)) or self.record.axes.get(value, [])

    def _places(self, axes: list[Axis]) -> list[int]:
        return [i for i, axis in enumerate(axes) if self.patches & set(atoms_of(axis))]

    def _require_from_here(self, node: ir.Node, operand: int) -> None:
        value, axes = node.inputs[operand], self._axes(node, operand)
        assert value is not None
        if value not in self.reached:
            kind = "a constant" if value in self.record.constant else "a value from before"
            raise CannotReduceError(node.name, f"{kind} with an entry per token is read: {value.name}")
        if any(not self.patches <= set(atoms_of(axes[place])) for place in self._places(axes)):
            raise CannotReduceError(node.name, "tokens are told apart by their place")

    def _require_no_mixing(self, node: ir.Node, operand: int) -> None:
        """Tokens meet in attention alone: a Softmax over keys, and the product with its result."""
        axes = self._axes(node, operand)
        if not set(self._places(axes)) & set(self.sums.get((node, operand), ())):
            return
        if node.op_type == "Softmax":
            if len(axes) != 4 or not _is_over_keys(node) or not _same(axes[3], self.tokens):
                raise CannotReduceError(node.name, "its attention has no axis of heads")
            self.found.append(node)
            return
        if node.op_type != "MatMul" or _source(node.inputs[0]) not in self.found:
            raise CannotReduceError(node.name, f"{node.op_type} goes over all tokens, and is no attention")

    def _require_early_pick(self, node: ir.Node) -> None:
        """A pick from the tokens by number takes those that stay."""
        axes, axis = self._axes(node, 0), node.attributes.get_int("axis", 0)
        if axis % len(axes) not in self._places(axes):
            return
        indices = self.analysis.shapes.array(node.inputs[1])
        if indices is None or not ((indices >= 0) & (indices < self.first)).all():
            raise CannotReduceError(node.name, "a patch is picked by its place")
