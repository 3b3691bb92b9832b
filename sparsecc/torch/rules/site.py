"""What an ATen rule sees: one call, its arguments by the names of its schema, and the axes of its tensors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import onnx_ir as ir
import torch
from torch import fx

from sparsecc.axes.algebra import Axis, Space
from sparsecc.axes.sizes import Size
from sparsecc.rules.site import CannotFollowError, Record, Site
from sparsecc.torch.program.exported import Program, size_of


class AtenSite(Site):
    """One ATen call while its rule runs. Operands are tensor arguments, numbered as they come."""

    def __init__(self, program: Program, node: ir.Node, space: Space, record: Record) -> None:
        super().__init__(node, space, program.shapes, record, 1)
        self.call = program.call[node]
        self.given, self.numbers = arguments(program, self.call)

    def arg(self, name: str, default: Any = None) -> Any:
        """An argument as it stands in the fx node; its default where it was left out."""
        return self.given.get(name, default)

    def size(self, name: str, default: int) -> Size:
        """An integer argument, a dynamic one with a value per probe."""
        value = self.given.get(name)
        return default if value is None else size_of(value)

    def integer(self, name: str, default: int = 0) -> int:
        """A static integer argument."""
        size = self.size(name, default)
        if not isinstance(size, int):
            raise CannotFollowError(f"its argument {name} is dynamic")
        return size

    def sizes(self, name: str) -> list[Size]:
        """A list of sizes, dynamic ones with a value per probe."""
        value = self.given.get(name)
        if not isinstance(value, list | tuple):
            raise CannotFollowError(f"it lacks sizes in {name}")
        return [size_of(v) for v in value]

    def dims(self, name: str, rank: int) -> list[int]:
        """An argument that holds one axis or several, made non-negative; all axes where it was left out."""
        value = self.given.get(name)
        if value is None or value == []:
            return list(range(rank))
        values = value if isinstance(value, list | tuple) else [value]
        return sorted(self.nonnegative(int(v), rank) for v in values)

    def dim(self, name: str = "dim", rank: int | None = None, default: int = 0) -> int:
        """One axis argument, made non-negative."""
        return self.nonnegative(self.integer(name, default), self.rank(0) if rank is None else rank)

    def holds(self, name: str) -> bool:
        """Whether a tensor was given for an argument."""
        return bool(self.numbers.get(name))

    def number(self, name: str) -> int:
        """The operand number of a tensor argument."""
        if not self.holds(name):
            raise CannotFollowError(f"it lacks the tensor {name}")
        return self.numbers[name][0]

    def of(self, name: str) -> list[Axis]:
        """The axes of a tensor argument."""
        return self.axes(self.number(name))

    def all_of(self, name: str) -> list[list[Axis]]:
        """The axes of each tensor of a list argument."""
        return [self.axes(number) for number in self.numbers.get(name, [])]

    def everything(self) -> list[list[Axis]]:
        return [self.axes(i) for i in range(len(self.node.inputs))]

    def set_all(self, axes: Sequence[Axis]) -> None:
        """Every output has these axes."""
        for output in range(self.outputs()):
            self.set(axes, output)


def arguments(program: Program, call: fx.Node) -> tuple[dict[str, Any], dict[str, list[int]]]:
    """(arguments by name, operand numbers of the tensors in each)."""
    given: dict[str, Any] = {}
    schema = call.target._schema.arguments if isinstance(call.target, torch._ops.OpOverload) else []
    for position, value in enumerate(call.args):
        given[schema[position].name if position < len(schema) else str(position)] = value
    given.update(call.kwargs)
    numbers: dict[str, list[int]] = {}
    count = 0
    for name, value in given.items():
        for leaf in leaves(value):
            for _ in program.of.get(leaf, ()):
                numbers.setdefault(name, []).append(count)
                count += 1
    for entry in schema:
        if entry.name not in given and entry.has_default_value():
            given[entry.name] = entry.default_value
    return given, numbers


def leaves(value: Any) -> Iterator[fx.Node]:
    """The fx nodes in nested arguments, in order."""
    if isinstance(value, fx.Node):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from leaves(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from leaves(item)
