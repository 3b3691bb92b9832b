"""The element type of every value, from the schemas of the operators that make them or their rows in the table."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import onnx
import onnx_ir as ir

from sparsecc.ir.subgraphs import bodies_of, has_body
from sparsecc.rules.table import shapes_of


def _type_string(formals: Any, index: int) -> str:
    """The formal type of an operand; the last one repeats when it is variadic."""
    if not formals:
        return ""
    return str(formals[min(index, len(formals) - 1)].type_str)


def value_types(model: ir.Model) -> dict[ir.Value, ir.DataType]:
    """The element type of every value, those of bodies too, from the model or else from the operator schemas."""
    types: dict[ir.Value, ir.DataType] = {}
    _take(model.graph, types, model)
    return types


def _take(graph: ir.Graph, types: dict[ir.Value, ir.DataType], model: ir.Model) -> None:
    for value in (*graph.inputs, *graph.initializers.values()):
        if value.const_value is not None:
            types[value] = value.const_value.dtype
        elif value.dtype is not None:
            types[value] = value.dtype
    for node in graph:
        for body in bodies_of(node):
            for value, given in zip(body.inputs, _handed_in(node), strict=False):
                if given in types and given is not None:
                    types[value] = types[given]
            _take(body, types, model)
        for output, type_ in zip(node.outputs, _output_types(node, types, model), strict=True):
            if type_ is not None:
                types[output] = type_


def _handed_in(node: ir.Node) -> list[ir.Value | None]:
    """What each input of a body has the type of; None where the body says that itself."""
    return [None, None, *node.inputs[2:]] if node.op_type == "Loop" else list(node.inputs)


def _output_types(
    node: ir.Node, types: dict[ir.Value, ir.DataType], model: ir.Model
) -> Iterator[ir.DataType | None]:
    opset = model.opset_imports.get("", 1)
    known = node.domain in ("", "ai.onnx") and onnx.defs.has(node.op_type, opset, "")
    schema = onnx.defs.get_schema(node.op_type, opset, "") if known else None
    for index, output in enumerate(node.outputs):
        if output.dtype is not None:
            yield output.dtype
        elif node.op_type == "Cast":
            yield ir.DataType(node.attributes["to"].as_int())
        elif node.op_type == "ConstantOfShape":
            fill = node.attributes.get("value")
            yield ir.DataType.FLOAT if fill is None else fill.as_tensor().dtype
        elif has_body(node):
            yield _handed_out(node, index, types)
        elif schema is None:
            yield _from_row(node, index, types)
        else:
            yield _from_schema(schema, index, node, types)


def _handed_out(node: ir.Node, output: int, types: dict[ir.Value, ir.DataType]) -> ir.DataType | None:
    """The type of what a body gives; the first output of a Loop's body is its condition."""
    place = output + 1 if node.op_type == "Loop" else output
    given = [types.get(body.outputs[place]) for body in bodies_of(node) if place < len(body.outputs)]
    return given[0] if given else None


def _from_row(node: ir.Node, output: int, types: dict[ir.Value, ir.DataType]) -> ir.DataType | None:
    """The type of a runtime's own operator's output, as its row says; None where it has no row."""
    row = shapes_of(node.domain, node.op_type)
    if row is None or not node.inputs:
        return None
    if output in row.own:
        return ir.DataType(row.own[output])
    operand = node.inputs[row.dtype if row.dtype < len(node.inputs) else 0]
    return types.get(operand) if operand is not None else None


def _from_schema(
    schema: onnx.defs.OpSchema, index: int, node: ir.Node, types: dict[ir.Value, ir.DataType]
) -> ir.DataType | None:
    formal = _type_string(schema.outputs, index)
    if formal.startswith("tensor("):
        name = formal[7:-1].upper()
        return ir.DataType[name] if name in ir.DataType.__members__ else None
    for position, value in enumerate(node.inputs):
        if value in types and value is not None and _type_string(schema.inputs, position) == formal:
            return types[value]
    return ir.DataType.FLOAT if node.op_type in ("RandomNormal", "RandomUniform") else None
