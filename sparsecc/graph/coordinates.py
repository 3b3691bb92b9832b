"""Slots that are places rather than channels: steps of a grid, and bins that are counted to find an index.

Such slots are free by their axes alone, and a network that lost some would still be the masked one; but what it
computes then are other coordinates, not fewer features.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from sparsecc.axes.algebra import Axis, Space
from sparsecc.ir.dtypes import FLOATS
from sparsecc.rules import Trait, traits_of
from sparsecc.rules.site import Record

LEAST_STEPS = 3
"""Numbers that make an even sequence: two always are one."""
MOST_ELEMENTS = 1 << 20
"""A larger constant is no grid of coordinates."""

INDICES = {
    ("Gather", 1), ("GatherElements", 1), ("GatherND", 1), ("ScatterElements", 1), ("Scatter", 1), ("ScatterND", 1),
    ("OneHot", 0), ("Slice", 1), ("Slice", 2),
}  # fmt: skip
"""(operator, operand) whose elements are places in another axis."""
COUNTED = frozenset({"ReduceSum", "CumSum"})


def pin_coordinates(model: ir.Model, space: Space, record: Record) -> None:
    """Pin the axes of even grids of numbers, and those whose slots are counted to find an index."""
    for (node, operand), axes in record.uses.items():
        value = node.inputs[operand]
        if value is not None and traits_of(node) & Trait.SLOTWISE:
            space.cause = node
            for position in _even_axes(value):
                space.pin(axes[position], f"'{value.name}' holds evenly spaced coordinates: the slots")
    for node in model.graph.all_nodes():
        for operand, value in enumerate(node.inputs):
            if value is not None and (node.op_type, operand) in INDICES:
                _pin_counted(space, record, value)


def _even_axes(value: ir.Value) -> Iterator[int]:
    """The axes of a constant along which it runs in even steps everywhere, somewhere other than zero."""
    tensor = value.const_value
    if tensor is None or not LEAST_STEPS <= tensor.size <= MOST_ELEMENTS:
        return
    if tensor.dtype not in (*FLOATS, ir.DataType.INT32, ir.DataType.INT64):
        return
    array = tensor.numpy().astype(np.float64)
    for axis, size in enumerate(array.shape):
        if size < LEAST_STEPS:
            continue
        steps = np.diff(array, axis=axis)
        first = np.take(steps, [0], axis=axis)
        slack = 1e-3 * np.abs(first)  # linspace rounds
        if np.isfinite(array).all() and first.any() and (np.abs(steps - first) <= slack).all():
            yield axis


def _pin_counted(space: Space, record: Record, index: ir.Value) -> None:
    """Pin what is counted on the way to an index: summed, and nothing but rounded, cast or shifted after."""
    pending, seen = [index], {index}
    while pending:
        node = pending.pop().producer()
        if node is None:
            continue
        if node.op_type in COUNTED:
            space.cause = node
            for axis in _summed(record, node):
                space.pin(axis, f"slots counted by {node.op_type} '{node.name}' to find an index")
        elif traits_of(node) & (Trait.SLOTWISE | Trait.MOVES):
            read = [v for v in node.inputs if v is not None and v not in seen]
            seen.update(read)
            pending.extend(read)


def _summed(record: Record, node: ir.Node) -> Iterator[Axis]:
    for reduction in record.reductions:
        value = node.inputs[reduction.operand] if reduction.node is node else None
        if value is not None and value in record.axes:
            yield from (record.axes[value][position] for position in reduction.positions)
