"""A model whose weights are float16, in float32: what quantization to fewer bits starts from.

Numbers of 16 bits are numbers of 32: nothing is lost. Inputs and outputs keep their type, behind casts, and what stays
in float keeps its 16 bits in the file.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from sparsecc.ir.graph_editor import GraphEditor
from sparsecc.ir.subgraphs import has_body
from sparsecc.passes.weights.linear_layers import constant_array, find_layers
from sparsecc.rules.value_types import value_types
from sparsecc.system.memory import HELD

HALF, FLOAT = ir.DataType.FLOAT16, ir.DataType.FLOAT
_WORTH_A_CAST = 1024
"""Bytes of a constant that is stored in 16 bits again."""


@dataclass
class Widened:
    """The names of a model's constants that were halves: passes that need a newer opset make all values anew."""

    model: ir.Model
    constants: list[str]

    def store_halves(self) -> None:
        """Constants that are still what they were are stored as halves again, behind casts."""
        editor = GraphEditor(self.model)
        for name in self.constants:
            value = self.model.graph.initializers.get(name)
            if value is None or not value.uses() or value.is_graph_output():
                continue
            if value.const_value is None or value.const_value.dtype != FLOAT:
                continue
            numbers = constant_array(value)
            with np.errstate(over="ignore"):
                halves = numbers.astype(np.float16)
            if halves.nbytes < _WORTH_A_CAST or not np.array_equal(halves.astype(np.float32), numbers):
                continue
            stored = editor.constant(f"{name}_fp16", halves)
            value.replace_all_uses_with(
                editor.add(
                    "Cast", [stored], {"to": FLOAT.value}, base=f"{name}_fp32", dtype=FLOAT, like=stored
                )
            )
            self.model.graph.initializers.pop(name)


def widen_half(model: ir.Model) -> Widened | None:
    """Turn a float16 model into a float32 one, in place; None where no layer's weight is float16, or a node holds a
    graph, whose values would have to follow."""
    if not find_layers(model, (HALF,))[0] or any(has_body(node) for node in model.graph):
        return None
    editor, types = GraphEditor(model), value_types(model)
    widened = Widened(model, [])
    for value in list(model.graph.initializers.values()):
        if value.const_value is not None and value.dtype == HALF and not value.is_graph_input():
            value.const_value = _wide(value.const_value, value.name)
            value.type = ir.TensorType(FLOAT)
            widened.constants.append(value.name or "")
    for node in model.graph:
        _widen_attributes(node)
        for output in node.outputs:
            if types.get(output) == HALF:
                output.type = ir.TensorType(FLOAT)
    _cast_borders(editor, model, types)
    return widened


def _wide(half: ir.TensorProtocol, name: str | None) -> ir.TensorProtocol:
    """The same numbers in 32 bits; large ones are made at every use, so that the model is not held twice over."""

    def wide() -> ir.TensorProtocol:
        return ir.Tensor(half.numpy().astype(np.float32), name=name)

    if half.nbytes <= HELD:
        return wide()
    return ir.LazyTensor(wide, dtype=FLOAT, shape=ir.Shape(half.shape.numpy()), name=name)


def _widen_attributes(node: ir.Node) -> None:
    """Operators that name their result's type, or hold its numbers."""
    for name in ("to", "dtype"):
        if name in node.attributes and node.attributes[name].as_int() == HALF.value:
            node.attributes[name] = ir.Attr(name, ir.AttributeType.INT, FLOAT.value)
    fill = node.attributes.get("value")
    if fill is not None and fill.type == ir.AttributeType.TENSOR and fill.as_tensor().dtype == HALF:
        wide = ir.tensor(fill.as_tensor().numpy().astype(np.float32))
        node.attributes["value"] = ir.Attr("value", ir.AttributeType.TENSOR, wide)


def _cast_borders(editor: GraphEditor, model: ir.Model, types: dict[ir.Value, ir.DataType]) -> None:
    for value in dict.fromkeys(model.graph.outputs):
        if types.get(value) == HALF and value.producer() is not None:
            narrow = editor.add_behind(
                value,
                "Cast",
                [value],
                attributes={"to": HALF.value},
                base=f"{value.name}_fp16",
                dtype=HALF,
                like=value,
            )
            editor.replace_output(value, narrow)
            narrow.type = ir.TensorType(HALF)
    for value in model.graph.inputs:
        if types.get(value) == HALF and value.uses():
            readers = tuple(value.uses())
            wide = editor.add(
                "Cast", [value], {"to": FLOAT.value}, base=f"{value.name}_fp32", dtype=FLOAT, like=value
            )
            for node, place in readers:
                node.replace_input_with(place, wide)
    editor.finish()
