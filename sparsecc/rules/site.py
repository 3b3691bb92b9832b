"""What a rule sees: one node, the axes of its operands, and verbs to relate them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from sparsecc.axes.algebra import Atom, Axis, Space
from sparsecc.axes.sizes import Size, quotient
from sparsecc.shapes.infer import Shapes

CELLS = "cells"
"""The role of axes that are no channels: a kernel's cells, places in an image."""

SPATIAL = "a spatial axis"
"""Why the places of an image stay."""


class CannotFollowError(Exception):
    """A rule met a form it does not cover. Not an error of the user's: the node's axes are pinned with this reason."""


@dataclass(frozen=True)
class Reduction:
    """An operator that sums, averages or normalises over axes of one operand.

    `kind` names how the removed slots have to be masked in the dense model for an exact comparison: `sum`
    (zeros do), or a mixing kind whose result depends on how many slots there are (`mean`, `max`, `min`,
    `layernorm`, `rmsnorm`, `instancenorm`, `groupnorm`). Quantized operands are empty at their zero point:
    `fill` is the operand that holds it.
    """

    node: ir.Node
    operand: int
    positions: tuple[int, ...]
    kind: str = "sum"
    fill: int | None = None


@dataclass
class Record:
    """What analysis keeps of the nodes it walked."""

    axes: dict[ir.Value, list[Axis]] = field(default_factory=dict)
    uses: dict[tuple[ir.Node, int], list[Axis]] = field(default_factory=dict)
    reductions: list[Reduction] = field(default_factory=list)
    macs: dict[ir.Node, list[list[Axis]]] = field(default_factory=dict)
    memos: dict[ir.Node, Any] = field(default_factory=dict)
    numbers: dict[ir.Value, Axis] = field(default_factory=dict)
    """Values whose elements are numbers of slots, with the axis that these are slots of."""
    picked: set[ir.Value] = field(default_factory=set)
    """Weights that were picked from a stack of them."""
    unless_experts: list[tuple[ir.Node, Axis, str]] = field(default_factory=list)
    """Axes to be pinned for a reason, unless their slots are experts."""
    chosen: list[tuple[Axis, int]] = field(default_factory=list)
    """Axes of which so many slots are picked at run time."""
    counted_once: list[ir.Node] = field(default_factory=list)
    """Loops that run nobody knows how often: their products count as done once."""
    constant: set[ir.Value] = field(default_factory=set)
    unfollowed: dict[ir.Node, str] = field(default_factory=dict)

    def reduced(self, reduction: Reduction) -> list[Axis]:
        """The axes that a reduction is over."""
        value = reduction.node.inputs[reduction.operand]
        assert value is not None
        axes = self.uses.get((reduction.node, reduction.operand)) or self.axes.get(value)
        return [axes[position] for position in reduction.positions] if axes else []


class Site:
    """One node while its rule runs. Operand and output numbers are those of the ONNX specification."""

    def __init__(
        self,
        node: ir.Node,
        space: Space,
        shapes: Shapes,
        record: Record,
        version: int,
        follow_body: Callable[[ir.Graph], None] | None = None,
    ) -> None:
        self.node = node
        self.space = space
        self.shapes = shapes
        self.record = record
        self.version = version
        self._follow_body = follow_body
        self.claimed: set[int] = set()
        self.looked_up: set[int] = set()

    # operands -----------------------------------------------------------------------------------------

    def has(self, operand: int) -> bool:
        return operand < len(self.node.inputs) and self.node.inputs[operand] is not None

    def value(self, operand: int) -> ir.Value:
        value = self.node.inputs[operand] if operand < len(self.node.inputs) else None
        if value is None:
            raise CannotFollowError(f"{self.node.op_type} lacks operand {operand}")
        return value

    def axes(self, operand: int) -> list[Axis]:
        """The axes of an operand. An initializer has axes of its own at every use."""
        value = self.value(operand)
        self.claimed.add(operand)
        if value.is_initializer():
            key = (self.node, operand)
            if key not in self.record.uses:
                self.record.uses[key] = [Atom(size) for size in self.shape(operand)]
            return self.record.uses[key]
        axes = self.record.axes.get(value)
        if axes is None:
            raise CannotFollowError(self.shapes.reason(value))
        return axes

    def shape(self, operand: int) -> tuple[Size, ...]:
        shape = self.shapes.of(self.value(operand))
        if shape is None:
            raise CannotFollowError(self.shapes.reason(self.value(operand)))
        return shape

    def rank(self, operand: int) -> int:
        return len(self.shape(operand))

    def is_constant(self, operand: int) -> bool:
        """Whether an operand depends on nothing but initializers."""
        return self.value(operand) in self.record.constant

    def is_weight(self, operand: int) -> bool:
        """Whether an operand is constant, or picked at run time from a stack of constants."""
        return self.is_constant(operand) or self.value(operand) in self.record.picked

    def numbered(self, operand: int) -> Axis | None:
        """The axis whose slots an operand holds numbers of. The rule then answers for what they are used for."""
        found = self.record.numbers.get(self.value(operand))
        if found is not None:
            self.looked_up.add(operand)
        return found

    def ignore(self, *operands: int) -> None:
        """These operands are read in a way that puts no constraint on their axes."""
        self.claimed.update(operands)

    def elements(self, operand: int) -> list[Size] | None:
        return self.shapes.elements(self.node.inputs[operand]) if self.has(operand) else None

    def array(self, operand: int) -> np.ndarray | None:
        return self.shapes.array(self.node.inputs[operand]) if self.has(operand) else None

    # bodies -------------------------------------------------------------------------------------------

    def body(self, name: str) -> ir.Graph:
        return self.node.attributes[name].as_graph()

    def follow_body(self, graph: ir.Graph) -> None:
        """Follow the nodes of a body, whose inputs have their axes, by the rules of all nodes."""
        assert self._follow_body is not None
        self._follow_body(graph)
        self.space.cause = self.node

    # attributes ---------------------------------------------------------------------------------------

    def int_(self, name: str, default: int = 0) -> int:
        return self.node.attributes.get_int(name, default)

    def float_(self, name: str, default: float = 0.0) -> float:
        return self.node.attributes.get_float(name, default)

    def ints(self, name: str) -> list[int] | None:
        found = self.node.attributes.get_ints(name)
        return None if found is None else list(found)

    def string(self, name: str, default: str = "") -> str:
        return self.node.attributes.get_string(name, default)

    def axis(self, name: str = "axis", default: int = 0, rank: int | None = None) -> int:
        """An axis attribute, made non-negative."""
        return self.nonnegative(self.int_(name, default), self.rank(0) if rank is None else rank)

    def nonnegative(self, axis: int, rank: int) -> int:
        if not -rank <= axis < max(rank, 1):
            raise CannotFollowError(f"axis {axis} is outside rank {rank}")
        return axis % rank if rank else 0

    def axis_list(self, operand: int, name: str = "axes") -> list[int] | None:
        """Axes given as an attribute (older opsets) or as an operand; None when left out."""
        found = self.ints(name)
        if found is not None or not self.has(operand):
            return found
        elements = self.elements(operand)
        if elements is None or not all(isinstance(e, int) for e in elements):
            raise CannotFollowError("its axes are computed at run time")
        return [e for e in elements if isinstance(e, int)]

    # relations ----------------------------------------------------------------------------------------

    def same(self, a: Axis, b: Axis) -> Axis:
        """State that two axes are one, unless either has size 1 and is broadcast. Returns the longer."""
        if a.size == 1:
            return b
        if b.size != 1:
            self.space.unify(a, b)
        return a

    def pin(self, axes: Axis | Sequence[Axis], reason: str) -> None:
        for axis in [axes] if isinstance(axes, Axis) else axes:
            self.space.pin(axis, f"{reason} of {self.title}")
            if reason == SPATIAL:
                self.space.mark(axis, CELLS)

    def pin_kernel(self, axes: Sequence[Axis]) -> None:
        """Pin the axes of a kernel's cells, which are no channels whatever becomes of the model."""
        self.pin(axes, "the kernel")
        for axis in axes:
            self.space.mark(axis, CELLS)

    def pin_unless_experts(self, axis: Axis, reason: str) -> None:
        """Pin an axis at the end of the walk, if its slots did not turn out to be experts."""
        self.record.unless_experts.append((self.node, axis, f"{reason} of {self.title}"))

    def fixed(self, size: Size, reason: str) -> Axis:
        """A fresh axis that can lose nothing."""
        axis = Atom(size)
        self.pin(axis, reason)
        return axis

    def out_shape(self, output: int = 0) -> tuple[Size, ...]:
        shape = self.shapes.of(self.node.outputs[output])
        if shape is None:
            raise CannotFollowError(self.shapes.reason(self.node.outputs[output]))
        return shape

    def outputs(self) -> int:
        return len(self.node.outputs)

    def set(self, axes: Sequence[Axis], output: int = 0) -> None:
        """Give an output its axes. Sizes must be those that shape inference found."""
        if output >= len(self.node.outputs):
            return
        value = self.node.outputs[output]
        known = self.shapes.of(value)
        if known is not None and tuple(a.size for a in axes) != known:
            found = [a.size for a in axes]
            raise CannotFollowError(f"its axes {found} differ from its shape {list(known)}")
        self.record.axes[value] = list(axes)

    def reduces(
        self, operand: int, positions: int | Sequence[int], kind: str = "sum", fill: int | None = None
    ) -> None:
        """These axes of an operand are summed over, or mixed as `kind` says."""
        rank = self.rank(operand)
        wanted = [positions] if isinstance(positions, int) else positions
        zero = fill if fill is not None and self.has(fill) else None
        self.record.reductions.append(
            Reduction(self.node, operand, tuple(p % rank for p in wanted), kind, zero)
        )

    def multiplies(self, *axes: Axis) -> None:
        """The node does the product of these axes' sizes in multiply-accumulates."""
        self.record.macs.setdefault(self.node, []).append(list(axes))

    def remember(self, memo: Any) -> None:
        """Keep something for the fix of this node."""
        self.record.memos[self.node] = memo

    @property
    def title(self) -> str:
        return f"{self.node.op_type} '{self.node.name}'"


def in_groups(site: Site, axis: Axis, groups: int, what: str = "its channels") -> tuple[Axis, Axis]:
    """An axis as groups of equal width: (the groups, what is in each). CannotFollowError where it has no such form."""
    width = quotient(axis.size, groups)
    found = site.space.factored(axis, (groups, width)) if width is not None else None
    if found is None:
        raise CannotFollowError(f"{what} cannot be seen as {groups} groups")
    return found[0], found[1]


def broadcast(site: Site, shapes: Sequence[Sequence[Axis]]) -> list[Axis]:
    """The axes of a numpy-style broadcast of several operands; equal axes are unified."""
    rank = max((len(axes) for axes in shapes), default=0)
    result: list[Axis] = [Atom(1) for _ in range(rank)]
    for axes in shapes:
        for i, axis in enumerate(axes, start=rank - len(axes)):
            result[i] = site.same(result[i], axis)
    return result
