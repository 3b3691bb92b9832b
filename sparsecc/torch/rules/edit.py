"""What removal changes in the arguments of an ATen call, as data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
from torch import fx

from sparsecc.axes.algebra import Atom, Axis, Keep
from sparsecc.rules.edit import Edit, dynamic_ratio
from sparsecc.rules.site import Record
from sparsecc.torch.program.exported import Program, size_of
from sparsecc.torch.rules.site import arguments


@dataclass(frozen=True)
class Rescaled:
    """A size computed at run time, to become `node // divisor * multiplier`."""

    node: fx.Node
    divisor: int
    multiplier: int


@dataclass(frozen=True)
class Change:
    """An argument of a call that must change. Lists may hold `Rescaled` elements."""

    call: fx.Node
    name: str
    old: Any
    new: Any
    target: Any = None
    """Another overload to call instead, with the given arguments by position."""


class AtenEdit(Edit):
    """One call while its changes are collected."""

    def __init__(
        self, program: Program, node: ir.Node, record: Record, keep: Keep, kept: Mapping[Atom, int]
    ) -> None:
        super().__init__(node, record, program.shapes, keep, kept, 1)
        self.call = program.call[node]
        self.given, self.numbers = arguments(program, self.call)
        self.changes: list[Change] = []

    def set(self, name: str, new: Any) -> None:
        self.changes.append(Change(self.call, name, self.given.get(name), new))

    def replace(self, target: Any, name: str, new: Any) -> None:
        """Call another operator with the same first argument, `new` as second, and the axis."""
        self.changes.append(Change(self.call, name, self.given.get(name), new, target))

    def set_size(self, name: str, axis: Axis) -> None:
        """Mend an argument that is the size of an axis."""
        self.set(name, self._resized(self.given.get(name), axis))

    def set_sizes(self, name: str, axes: Sequence[Axis], fill: int | None = None) -> None:
        """Mend a list that holds the sizes of `axes`, one element each; what is not an axis' size stays."""
        old = self.given.get(name)
        if not isinstance(old, list | tuple):
            return
        new = list(old)
        for position, (axis, element) in enumerate(zip(axes, old, strict=True)):
            if not self.changed(axis) or size_of(element) != axis.size:
                continue
            new[position] = self._resized(element, axis)
        if new != list(old):
            self.set(name, new)

    def _resized(self, element: Any, axis: Axis) -> int | Rescaled:
        """What the size of an axis becomes; of a dynamic one `element` holds what it was."""
        if isinstance(axis.size, int):
            return self.left(axis)
        divisor, multiplier = dynamic_ratio(axis, self.kept)
        return Rescaled(element, divisor, multiplier)
