"""What a fix sees: one node whose operands lost slots, and verbs to mend its own sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from sparsecc.axes.algebra import Atom, Axis, Keep, atoms_of, mask
from sparsecc.axes.counting import count
from sparsecc.axes.sizes import Size, at, quotient
from sparsecc.ir.constants import add_constant
from sparsecc.rules.site import Record
from sparsecc.shapes.infer import Shapes


class Edit:
    """One node while it is mended. Axes are those analysis gave it; counts are after removal.

    New constants go to `graph`, the main one: what a body reads from there has a name of its own.
    """

    def __init__(
        self,
        node: ir.Node,
        record: Record,
        shapes: Shapes,
        keep: Keep,
        kept: Mapping[Atom, int],
        version: int,
        graph: ir.Graph | None = None,
    ) -> None:
        self.node = node
        self.graph = graph
        self.record = record
        self.shapes = shapes
        self.keep = keep
        self.kept = kept
        self.version = version

    @property
    def memo(self) -> Any:
        return self.record.memos.get(self.node)

    def changed(self, axis: Axis) -> bool:
        return any(atom in self.kept for atom in atoms_of(axis))

    def count(self, axis: Axis) -> Size:
        """Slots left of an axis."""
        return count(axis, self.kept)

    def left(self, axis: Axis) -> int:
        """Slots left of a static axis."""
        assert isinstance(axis.size, int), f"a static axis was expected in {self.node.name}"
        return int(self.mask(axis).sum())

    def mask(self, axis: Axis) -> np.ndarray:
        """The keep-mask of a static axis; all True where it lost nothing."""
        found = mask(axis, self.keep)
        return np.ones(at(axis.size, 0), dtype=bool) if found is None else found

    def axes(self, operand: int) -> list[Axis]:
        value = self.node.inputs[operand]
        assert value is not None
        if value.is_initializer():
            return self.record.uses[self.node, operand]
        return self.record.axes[value]

    def out_axes(self, output: int = 0) -> list[Axis]:
        return self.record.axes[self.node.outputs[output]]

    def has(self, operand: int) -> bool:
        return operand < len(self.node.inputs) and self.node.inputs[operand] is not None

    def elements(self, operand: int) -> list[Size] | None:
        return self.shapes.elements(self.node.inputs[operand]) if self.has(operand) else None

    def set_attribute(self, name: str, value: int | list[int]) -> None:
        make = ir.AttrInt64 if isinstance(value, int) else ir.AttrInt64s
        self.node.attributes[name] = make(name, value)  # type: ignore[arg-type]

    def set_constant(self, operand: int, values: np.ndarray) -> None:
        """Replace an operand by a constant of its own."""
        old = self.node.inputs[operand]
        self.node.replace_input_with(operand, self.new_constant(old, values))

    def set_shape_operand(self, operand: int, axes: Sequence[Axis]) -> None:
        """Mend an operand that holds the sizes of `axes`, one element each.

        An element that is not its axis' size stays (0, -1 and a broadcast 1 follow by themselves). Static sizes
        are overridden; dynamic ones are scaled by what the static factors inside them lost.
        """
        elements = self.elements(operand)
        affected = [self.changed(a) for a in axes]
        if elements is not None:
            affected = [c and e == a.size for c, e, a in zip(affected, elements, axes, strict=True)]
        if not any(affected):
            return
        if elements is not None and all(isinstance(e, int) for e in elements):
            new = [self.left(a) if c else e for a, c, e in zip(axes, affected, elements, strict=True)]
            self.set_constant(operand, np.asarray(new, dtype=np.int64))
            return
        value = self.node.inputs[operand]
        assert value is not None
        self.node.replace_input_with(operand, self.rescaled(value, *self.ratios(axes, affected)))

    def new_constant(self, like: ir.Value | None, values: np.ndarray) -> ir.Value:
        """A constant named after the value it stands in for."""
        assert self.graph is not None
        return new_constant(
            self.graph, (like.name if like is not None else None) or self.node.name or "", values
        )

    def rescaled(self, value: ir.Value, divisor: np.ndarray, multiplier: np.ndarray) -> ir.Value:
        """value // divisor * multiplier, element by element, as nodes placed before this one."""
        node = self.node
        assert isinstance(node.graph, ir.Graph)
        for operator, factor in (("Div", divisor), ("Mul", multiplier)):
            if (factor == 1).all():
                continue
            constant = self.new_constant(value, factor)
            made = ir.node(operator, [value, constant], name=f"{constant.name}.{operator.lower()}")
            made.outputs[0].name = made.name
            node.graph.insert_before(node, made)
            value = made.outputs[0]
        return value

    def ratios(self, axes: Sequence[Axis], affected: Sequence[bool]) -> tuple[np.ndarray, np.ndarray]:
        """(divisor, multiplier) per axis that turn its dense size into its size after removal, exactly."""
        pairs = []
        for axis, changed in zip(axes, affected, strict=True):
            old, new = (at(axis.size, 0), at(self.count(axis), 0)) if changed else (1, 1)
            if changed and not isinstance(axis.size, int):
                old, new = dynamic_ratio(axis, self.kept)
            pairs.append((old, new))
        array = np.asarray(pairs, dtype=np.int64)
        return array[:, 0], array[:, 1]


def dynamic_ratio(axis: Axis, kept: Mapping[Atom, int]) -> tuple[int, int]:
    """(old, new) of the static part of a dynamic axis: its size is a multiple of old and becomes one of new."""
    old, new = np.asarray(axis.size), np.asarray(count(axis, kept))
    divisor = int(np.gcd.reduce(old))
    common = np.gcd(divisor, int(new[0] * divisor // old[0]) or 1)
    scaled = quotient(int(new[0]) * divisor, int(old[0]))
    assert isinstance(scaled, int), "a dynamic axis lost a part that is not a factor"
    return divisor // int(common), scaled // int(common)


def new_constant(graph: ir.Graph, like: str, values: np.ndarray) -> ir.Value:
    """Add an initializer to the main graph, named after the value it stands in for."""
    return add_constant(graph, f"{like}.kept", values)
