"""Sequences that only pass tensors on become plain splits: torch exports `chunk` and `unbind` as such."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from sparsecc.ir.constants import add_constant
from sparsecc.shapes.dynamic_dims import is_fixed

_MOST = 1024
"""A sequence of more tensors than this stays one."""


def split_sequences(model: ir.Model) -> int:
    """Replace every SplitToSequence of known sizes whose tensors are taken out at constant positions.

    Each SequenceAt becomes an output of a Split, squeezed where the sequence dropped the axis. Returns how many
    sequences went.
    """
    opset = model.opset_imports.get("", 1)
    found = 0
    for graph in list(model.graphs()):
        for node in [n for n in graph if n.op_type == "SplitToSequence" and n.domain == ""]:
            sizes, taken = _sizes(node), _taken(node)
            if sizes and taken is not None and all(-len(sizes) <= i < len(sizes) for i in taken.values()):
                _replace(graph, node, sizes, taken, opset)
                found += 1
    return found


def _sizes(node: ir.Node) -> list[int] | None:
    """The lengths of the pieces along the axis, None where they are not known from the file alone."""
    data = node.inputs[0]
    axis = node.attributes.get_int("axis", 0)
    shape = data.shape if data is not None else None
    dim = shape[axis] if shape is not None and -len(shape) <= axis < len(shape) else -1
    whole = dim if is_fixed(dim) else 0
    if len(node.inputs) < 2 or node.inputs[1] is None:
        return [1] * whole if whole <= _MOST else None
    split = ir.convenience.get_const_tensor(node.inputs[1])
    if split is None:
        return None
    if len(split.shape):
        return [int(size) for size in split.numpy()]
    length = int(split.numpy())
    if not whole or length < 1 or whole > _MOST * length:
        return None
    return [length] * (whole // length) + [whole % length] * bool(whole % length)


def _taken(node: ir.Node) -> dict[ir.Node, int] | None:
    """SequenceAt -> the position it takes; None where the sequence is used in any other way."""
    sequence = node.outputs[0]
    taken: dict[ir.Node, int] = {}
    for user, operand in sequence.uses():
        where = user.inputs[1] if user.op_type == "SequenceAt" else None
        position = ir.convenience.get_const_tensor(where) if where is not None else None
        if operand != 0 or position is None or user.graph is not node.graph:
            return None
        taken[user] = int(position.numpy())
    return None if sequence.is_graph_output() else taken


def _replace(graph: ir.Graph, node: ir.Node, sizes: list[int], taken: dict[ir.Node, int], opset: int) -> None:
    data = node.inputs[0]
    axis = node.attributes.get_int("axis", 0)
    drops = (len(node.inputs) < 2 or node.inputs[1] is None) and not node.attributes.get_int("keepdims", 1)
    attributes: dict[str, int | list[int]] = {"axis": axis}
    inputs = [data]
    if opset < 13:
        attributes["split"] = sizes
    else:
        inputs.append(_constant(graph, f"{node.outputs[0].name}.sizes", sizes))
    split = ir.node("Split", inputs, attributes=attributes, num_outputs=len(sizes), name=node.name)
    graph.insert_before(node, split)
    for number, output in enumerate(split.outputs):
        output.name = f"{node.outputs[0].name}.{number}"
        output.type = data.type if data is not None else None
    for user, position in taken.items():
        made = _passed_on(graph, split.outputs[position], axis if drops else None, opset)
        made.name = user.name
        ir.convenience.replace_nodes_and_values(graph, user, [user], [made], user.outputs, made.outputs)
    graph.remove(node, safe=True)


def _passed_on(graph: ir.Graph, piece: ir.Value, dropped: int | None, opset: int) -> ir.Node:
    if dropped is None:
        return ir.node("Identity", [piece])
    if opset < 13:
        return ir.node("Squeeze", [piece], attributes={"axes": [dropped]})
    return ir.node("Squeeze", [piece, _constant(graph, f"{piece.name}.axes", [dropped])])


def _constant(graph: ir.Graph, name: str, numbers: list[int]) -> ir.Value:
    return add_constant(graph, name, np.asarray(numbers, dtype=np.int64))
