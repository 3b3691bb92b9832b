"""Models in 16 bits on the CPU, rounded as devices round: each node computes in float32, and its results are rounded.

ONNX Runtime lacks most kernels for bfloat16. For fp16 it puts casts around nodes and drops those between two, so that
nothing on the way overflows or loses bits as it does on a GPU.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir

from sparsecc.runtime.emulated_blocks import unblocked

if TYPE_CHECKING:
    from sparsecc.ir.graph_editor import GraphEditor

Types = dict[ir.Value, ir.DataType]
HALVES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


def emulated(model: ir.Model) -> ir.Model | None:
    """The model itself with its 16-bit nodes, in bodies too, in float32 between casts, and what
    is rounded to blocks of small floats in standard operators, or None when it has neither.

    Every value still holds what its type holds: only the sums inside a node are wider, as they are in the
    kernels of GPUs.
    """
    from sparsecc.ir.graph_editor import GraphEditor
    from sparsecc.ir.subgraphs import has_body
    from sparsecc.rules.value_types import value_types

    had_blocks, types = unblocked(model), value_types(model)
    if not set(HALVES) & set(types.values()):
        return model if had_blocks else None
    editor = GraphEditor(model)
    wide: dict[ir.Value, ir.Value] = {}
    for node in list(model.graph.all_nodes()):
        if node.op_type == "Cast" or has_body(node):
            continue
        _widen_inputs(editor, node, types, wide)
        _widen_attributes(node)
        for output in node.outputs:
            if types.get(output) in HALVES:
                _round_output(editor, output, types)
    editor.finish()
    return model


def _widen_inputs(editor: GraphEditor, node: ir.Node, types: Types, wide: dict[ir.Value, ir.Value]) -> None:
    for index, value in enumerate(node.inputs):
        if value is None or types.get(value) not in HALVES:
            continue
        if value not in wide:
            wide[value] = _cast(editor, value, ir.DataType.FLOAT)
        node.replace_input_with(index, wide[value])


def _widen_attributes(node: ir.Node) -> None:
    """Nodes that name the type of their result, or hold its numbers, give float32 too."""
    fill, named = node.attributes.get("value"), node.attributes.get("dtype")
    if node.op_type == "ConstantOfShape" and fill is not None and fill.as_tensor().dtype in HALVES:
        numbers = ir.tensor(fill.as_tensor().numpy().astype("float32"))
        node.attributes["value"] = ir.Attr("value", ir.AttributeType.TENSOR, numbers)
    if named is not None and named.type == ir.AttributeType.INT and ir.DataType(named.as_int()) in HALVES:
        node.attributes["dtype"] = ir.Attr("dtype", ir.AttributeType.INT, ir.DataType.FLOAT.value)


def _round_output(editor: GraphEditor, output: ir.Value, types: Types) -> None:
    """What the node now gives in float32 becomes its 16-bit type again for all who read it."""
    readers, half = list(output.uses()), types[output]
    rounded = _cast(editor, output, half)
    types[rounded] = half
    for reader, index in readers:
        reader.replace_input_with(index, rounded)
    if output.is_graph_output():
        editor.replace_output(output, rounded)
    output.type = ir.TensorType(ir.DataType.FLOAT)


def _cast(editor: GraphEditor, value: ir.Value, type_: ir.DataType) -> ir.Value:
    return editor.add_behind(
        value, "Cast", [value], attributes={"to": type_.value},
        base=f"{value.name}_{type_.name.lower()}", dtype=type_, like=value,
    )  # fmt: skip
