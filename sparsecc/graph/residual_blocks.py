"""Layers that can be left out: branches whose only way out is an Add that also takes what they started from.

In y = x + f(x) the branch f can go: y is x then, which has the same axes. A branch counts when nothing else
reads what it computes and no graph output lies in it; what it takes from outside (masks, positions) must not
itself depend on x, but for x's shape. Branches nest (a residual group of residual blocks), and a series that
repeats (attention, MLP, attention, MLP, …) is also offered in whole repeats.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

from sparsecc.axes.counting import slots
from sparsecc.graph.analysis import Analysis
from sparsecc.graph.caches import caches
from sparsecc.graph.kinds import KINDS
from sparsecc.graph.patterns import held
from sparsecc.ir.dtypes import FLOATS
from sparsecc.ir.subgraphs import has_body
from sparsecc.rules import Trait, traits_of

KIND = KINDS["layers"]


@dataclass(frozen=True)
class Branch:
    """One y = x + f(x): the Add, which operand of it is f(x), and the nodes that go with it (not the Add)."""

    add: ir.Node
    operand: int
    nodes: tuple[ir.Node, ...]

    @property
    def title(self) -> str:
        """How plans name it."""
        return f"{self.add.name}:{self.operand}"

    @property
    def entry(self) -> ir.Value:
        """What takes the place of the sum."""
        value = self.add.inputs[1 - self.operand]
        assert value is not None
        return value

    @property
    def value(self) -> ir.Value:
        """What the branch adds."""
        value = self.add.inputs[self.operand]
        assert value is not None
        return value

    @property
    def exit(self) -> ir.Value:
        return self.add.outputs[0]


@dataclass(frozen=True)
class ResidualBlock:
    """Branches that are left out together: one, or the branches of a whole repeat.

    `nodes` are all that go, the Adds and what only these branches share with them. `params` counts the elements
    of weights that nothing else reads, `members` are their names, `macs` is at the first probe's sizes.
    `position` is 0 for the first block of the model and 1 for the last. `pinned` says why it stays, None where
    it may go.
    """

    id: int
    branches: tuple[Branch, ...]
    nodes: tuple[ir.Node, ...]
    members: tuple[str, ...]
    params: int
    macs: int
    position: float = 0.0
    pinned: str | None = None

    @property
    def kind(self) -> str:
        return KIND

    @property
    def is_free(self) -> bool:
        return self.pinned is None

    @property
    def names(self) -> tuple[str, ...]:
        """Its nodes and weights, by name."""
        return (*self.members, *(node.name or "" for node in self.nodes))

    @property
    def entry(self) -> str:
        return self.branches[0].entry.name or ""

    @property
    def exit(self) -> str:
        return self.branches[-1].exit.name or ""


def find_blocks(
    analysis: Analysis,
    first_id: int = 0,
    *,
    keep: Sequence[str] = (),
    only: Sequence[str] = (),
    prune: Sequence[str] = tuple(KINDS),
) -> list[ResidualBlock]:
    """All blocks in the model's order, those of one branch first; ids count from `first_id`.

    `keep`, `only` and `prune` are those of `find_groups`: a block is kept where a pattern of `keep` names any
    of its nodes or weights, or it as `group:ID`.

    The first and the last of the innermost blocks (whole repeats, where there are such) are pinned, and so is
    every block that holds one of these.
    """
    finder = _Finder(analysis)
    branches = [b for node in analysis.model.graph for b in finder.branches_at(node) if finder.computes(b)]
    repeats = [r for line in _lines(branches) for r in _repeats(line)]
    blocks = [finder.block((b,)) for b in branches] + [finder.block(r) for r in repeats]
    places = {b.add: i for i, b in enumerate(branches)}
    last = max(len(branches) - 1, 1)
    placed = [replace(b, position=places[b.branches[0].add] / last) for b in blocks]
    ends = _ends(placed)
    asked = None if KIND in {KINDS[name] for name in prune} else f"{KIND} groups were not asked to be pruned"
    numbered = [replace(b, id=first_id + i) for i, b in enumerate(placed)]
    return [
        replace(b, pinned=_pin(b, ends) or held((f"group:{b.id}", *b.names), keep, only) or asked)
        for b in numbered
    ]


def goes_with(*ends: tuple[ir.Node, int]) -> set[ir.Node]:
    """The nodes that nobody reads once these nodes do not read these operands of theirs, caches but for themselves."""
    graph = ends[0][0].graph if ends else None
    kept = {cache.present for cache in caches(graph)} if isinstance(graph, ir.Graph) else set()
    going: set[ir.Node] = set()
    read: Counter[ir.Node] = Counter()
    pending = list(ends)
    while pending:
        user, place = pending.pop()
        value = user.inputs[place]
        node = value.producer() if value is not None else None
        if node is None or node.graph is not user.graph:
            continue
        read[node] += 1
        uses = sum(len(v.uses()) for v in node.outputs)
        if read[node] == uses and not any(v.is_graph_output() and v not in kept for v in node.outputs):
            going.add(node)
            pending.extend((node, i) for i in range(len(node.inputs)))
    return going


class _Finder:
    """Finds the branch that ends at an Add, and what it costs."""

    def __init__(self, analysis: Analysis) -> None:
        self.analysis = analysis
        self.graph = analysis.model.graph
        self.place = {node: i for i, node in enumerate(self.graph)}
        self.found: dict[ir.Value, Branch] = {}

    def branches_at(self, node: ir.Node) -> list[Branch]:
        """The branch that ends at this node, where one does."""
        if node.domain != "" or node.op_type not in ("Add", "Sum") or len(node.inputs) != 2:
            return []
        for operand in (1, 0):
            value, entry = node.inputs[operand], node.inputs[1 - operand]
            if value is None or entry is None or not self._is_alike(value, entry, node.outputs[0]):
                continue
            going = goes_with((node, operand))
            if going and not any(map(has_body, going)) and self._starts_at(entry, going):
                branch = Branch(node, operand, tuple(sorted(going, key=self.place.__getitem__)))
                self.found[branch.exit] = branch
                return [branch]
        return []

    def _is_alike(self, *values: ir.Value) -> bool:
        """Floats with the same axes: the Add made them one wherever neither has size 1."""
        kind = self.analysis.shapes.probes[0].types.get(values[0])
        if kind is None or not ir.DataType(kind.tensor_type.elem_type).is_floating_point():
            return False
        axes = [self.analysis.record.axes.get(v) for v in values]
        sizes = [None if a is None else tuple(x.size for x in a) for a in axes]
        return sizes[0] is not None and all(s == sizes[0] for s in sizes) and values[0] is not values[1]

    def _starts_at(self, entry: ir.Value, going: set[ir.Node]) -> bool:
        """Whether the branch reads the entry, or what the entry was before earlier branches were added to it,
        and nothing else from outside that was computed from it."""
        outside = {v for n in going for v in n.inputs if v is not None and v.producer() not in going}
        start = entry
        while start not in outside:
            if start not in self.found:
                return False
            start = self.found[start].entry
        through = self.found.get(entry) if start is not entry else None
        passed = {start, entry} if through is None else {start, entry, through.value}
        return not any(self._depends(v, start) for v in outside - passed)

    def _depends(self, value: ir.Value, start: ir.Value) -> bool:
        """Whether a value was computed from another, other than from its shape."""
        origin = start.producer()
        floor = self.place[origin] if origin is not None else -1
        pending, seen = [value], {value}
        while pending:
            top = pending.pop()
            if top is start:
                return True
            node = top.producer()
            if node is None or self.place.get(node, -1) <= floor or traits_of(node) & Trait.COUNTS:
                continue
            if has_body(node):
                return True
            fresh = {v for v in node.inputs if v is not None} - seen
            seen |= fresh
            pending.extend(fresh)
        return False

    def computes(self, branch: Branch) -> bool:
        """A layer multiplies; the sums inside an activation function are none."""
        return any(node in self.analysis.record.macs for node in branch.nodes)

    def block(self, branches: tuple[Branch, ...]) -> ResidualBlock:
        """With the weights that only these branches read, and their cost."""
        going = goes_with(*((b.add, b.operand) for b in branches)) | {b.add for b in branches}
        nodes = tuple(sorted(going, key=self.place.__getitem__))
        members: dict[str, int] = {}
        for node in nodes:
            for value in node.inputs:
                if value is None or not value.is_initializer() or value.is_graph_output():
                    continue
                tensor = value.const_value
                if (
                    tensor is not None
                    and tensor.dtype in FLOATS
                    and all(u.node in going for u in value.uses())
                ):
                    members[value.name or ""] = int(tensor.size)
        macs = sum(
            math.prod(slots(axis, {}) for axis in axes)
            for node in nodes
            for axes in self.analysis.record.macs.get(node, ())
        )
        return ResidualBlock(0, branches, nodes, tuple(members), sum(members.values()), int(macs))


def _lines(branches: Sequence[Branch]) -> list[list[Branch]]:
    """Branches in series: each starts where the one before it ended, or one norm or activation later."""
    starting: dict[ir.Value, Branch] = {}
    for branch in branches:
        starting.setdefault(branch.entry, branch)
    followed: set[ir.Node] = set()
    lines = []
    for branch in branches:
        if branch.add in followed:
            continue
        line: list[Branch] = []
        following: Branch | None = branch
        while following is not None and following.add not in followed:
            followed.add(following.add)
            line.append(following)
            following = _next(following, starting)
        lines.append(line)
    return lines


def follows(first: ResidualBlock, second: ResidualBlock) -> bool:
    """Whether a block starts where another ended, or one norm or activation later."""
    start = second.branches[0]
    return _next(first.branches[-1], {start.entry: start}) is start


def _next(branch: Branch, starting: dict[ir.Value, Branch]) -> Branch | None:
    value = branch.exit
    if value in starting:
        return starting[value]
    readers = {use.node for use in value.uses()}
    if len(readers) != 1:
        return None
    (reader,) = readers
    return next((starting[v] for v in reader.outputs if v in starting), None)


def _repeats(line: Sequence[Branch]) -> list[tuple[Branch, ...]]:
    """The whole repeats of a line in which the same two or more branches follow each other."""
    kinds = [_signature(branch) for branch in line]
    for period in range(1, len(line) // 2 + 1):
        if all(a == b for a, b in zip(kinds, kinds[period:], strict=False)):
            whole = range(0, len(line) - period + 1, period)
            return [tuple(line[i : i + period]) for i in whole] if period > 1 else []
    return []


def _signature(branch: Branch) -> tuple[object, ...]:
    """Equal for branches that do the same with weights of the same shapes."""
    shapes = [
        tuple(v.const_value.shape)
        for node in branch.nodes
        for v in node.inputs
        if v is not None and v.const_value is not None and v.const_value.dtype in FLOATS
    ]
    return tuple(sorted(node.op_type for node in branch.nodes)), tuple(sorted(shapes, key=str))


def _ends(blocks: Sequence[ResidualBlock]) -> tuple[frozenset[ir.Node], frozenset[ir.Node]]:
    """The Adds of the first and of the last innermost block, or of the repeats that they are in."""
    sets = [frozenset(b.add for b in block.branches) for block in blocks]
    insides = [frozenset(node for b in block.branches for node in b.nodes) for block in blocks]
    innermost = [
        s
        for s, inside in zip(sets, insides, strict=True)
        if len(s) == 1 and not any(t <= inside for t in sets)
    ]
    if not innermost:
        return frozenset(), frozenset()
    first, last = (max((s for s in sets if end <= s), key=len) for end in (innermost[0], innermost[-1]))
    return first, last


def _pin(block: ResidualBlock, ends: tuple[frozenset[ir.Node], frozenset[ir.Node]]) -> str | None:
    gone = set(block.nodes)
    for adds, which in zip(ends, ("first", "last"), strict=True):
        if gone & adds:
            return f"the {which} layer stays"
    return None
