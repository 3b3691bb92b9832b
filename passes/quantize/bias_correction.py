"""Bias correction: take the mean error of rounded weights back out of the bias (Nagel et al., 2019)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import onnx_ir as ir

from sparsecc.compilation import Compilation
from sparsecc.graph.linear_layers import LinearLayer, is_float_constant
from sparsecc.ir.graph_editor import GraphEditor
from sparsecc.passes.quantize.lower_onnxruntime import restored_weight
from sparsecc.passes.weights.input_moments import walk_inputs
from sparsecc.passes.weights.linear_layers import constant_array


def correct_biases(
    model: ir.Model,
    layers: Iterable[LinearLayer],
    before: Mapping[str, ir.TensorProtocol],
    compilation: Compilation,
    *,
    per_channel: bool,
    limit: int,
) -> list[str]:
    """b' = b - (W_rounded - W) E[x] for every Conv and Gemm that will be int8; their names.

    `before` has W by node name where the weight was rounded already.
    """
    wanted = [
        layer
        for layer in layers
        if layer.op_type != "MatMul" and (layer.bias is None or is_float_constant(layer.bias))
    ]
    shifts: dict[str, np.ndarray] = {}
    for inputs in walk_inputs(model, wanted, compilation):
        mean = inputs.mean()
        for layer in inputs.layers:
            exact = before[layer.name].numpy() if layer.name in before else layer.array()
            change = layer.matrix(restored_weight(layer, per_channel=per_channel, limit=limit) - exact)
            shifts[layer.name] = np.concatenate(
                [part @ mean[group] for group, part in enumerate(np.split(change, layer.group))]
            )
    editor = GraphEditor(model)
    for layer in wanted:
        shift = shifts[layer.name]
        old = constant_array(layer.bias).reshape(-1) if layer.bias is not None else np.zeros(len(shift))
        base = layer.bias.name if layer.bias is not None else f"{layer.weight.name}_bias"
        if len(layer.node.inputs) < 3:
            layer.node.resize_inputs(3)
        layer.node.replace_input_with(
            2, editor.constant(f"{base}_corrected", (old - shift).astype(np.float32))
        )
    return [layer.name for layer in wanted]
