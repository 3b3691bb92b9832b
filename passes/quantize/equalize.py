"""Cross-layer equalisation: even out channel ranges between convolutions, exactly (Nagel et al., 2019)."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from sparsecc.graph.linear_layers import LinearLayer
from sparsecc.ir.graph_editor import GraphEditor
from sparsecc.passes.weights.linear_layers import constant_array, find_layers

ROUNDS = 4


def equalize_convolutions(model: ir.Model) -> list[str]:
    """Scale output channel i of a convolution by 1/s and the next one's input by s, through Relu or nothing.

    s = sqrt(r1 / r2) with r the largest weights of the channel on either side. Gives the names of the first
    convolutions. Depthwise convolutions count as readers and writers of one channel each.
    """
    layers, _ = find_layers(model)
    by_node = {layer.node: layer for layer in layers if layer.op_type == "Conv"}
    pairs = [
        (layer, reader) for layer in by_node.values() if (reader := _only_reader(layer, by_node)) is not None
    ]
    editor = GraphEditor(model)
    for layer in {layer for pair in pairs for layer in pair}:
        _own(editor, layer)
    for _ in range(ROUNDS):
        for first, second in pairs:
            _balance(first, second)
    return [first.name for first, _ in pairs]


def _only_reader(layer: LinearLayer, by_node: dict[ir.Node, LinearLayer]) -> LinearLayer | None:
    value = layer.node.outputs[0]
    for _ in range(2):
        uses = value.uses()
        if len(uses) != 1 or value.is_graph_output():
            return None
        ((node, index),) = uses
        if node in by_node and index == 0:
            reader = by_node[node]
            depthwise = reader.array().shape[1] == 1 and reader.array().shape[0] == reader.group
            return reader if reader.group == 1 or depthwise else None
        if node.op_type != "Relu":
            return None
        value = node.outputs[0]
    return None


def _own(editor: GraphEditor, layer: LinearLayer) -> None:
    """Give the convolution constants that nothing else reads."""
    for index in (1, 2):
        value = layer.node.inputs[index] if index < len(layer.node.inputs) else None
        if value is not None and value.const_value is not None and len(value.uses()) > 1:
            layer.node.replace_input_with(index, editor.constant(f"{value.name}_own", constant_array(value)))
    weight = layer.node.inputs[1]
    assert weight is not None
    layer.weight = weight
    layer.bias = layer.node.inputs[2] if len(layer.node.inputs) > 2 else None


def _balance(first: LinearLayer, second: LinearLayer) -> None:
    out, into = first.array(), second.array()
    depthwise = second.group > 1
    written = np.abs(out).reshape(len(out), -1).max(axis=1)
    axes = tuple(i for i in range(into.ndim) if i != (0 if depthwise else 1))
    read = np.abs(into).max(axis=axes)
    usable = (written > 0) & (read > 0)
    scale = np.where(usable, np.sqrt(written / np.where(usable, read, 1.0)), 1.0).clip(1e-3, 1e3)
    spread = (-1, *[1] * (out.ndim - 1))
    _store(first.weight, out / scale.reshape(spread))
    if first.bias is not None:
        _store(first.bias, constant_array(first.bias) / scale)
    _store(second.weight, into * scale.reshape(spread if depthwise else (1, -1, *[1] * (into.ndim - 2))))


def _store(value: ir.Value, array: np.ndarray) -> None:
    value.const_value = ir.tensor(np.asarray(array, np.float32), name=value.name)
