"""Bias correction: take the mean error of rounded weights back out of the bias (Nagel et al., 2019)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import onnx_ir as ir

from sparsecc.compilation import Compilation
from sparsecc.ir.graph_editor import GraphEditor
from sparsecc.passes.quantize.lower_onnxruntime import restored_weight
from sparsecc.passes.weights.input_moments import walk_inputs
from sparsecc.passes.weights.linear_layers import Site, constant_array, is_float_constant


def correct_biases(
    model: ir.Model,
    sites: Iterable[Site],
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
        site
        for site in sites
        if site.op_type != "MatMul" and (site.bias is None or is_float_constant(site.bias))
    ]
    shifts: dict[str, np.ndarray] = {}
    for inputs in walk_inputs(model, wanted, compilation):
        mean = inputs.mean()
        for site in inputs.sites:
            exact = before[site.name].numpy() if site.name in before else site.array()
            change = site.matrix(restored_weight(site, per_channel=per_channel, limit=limit) - exact)
            shifts[site.name] = np.concatenate(
                [part @ mean[group] for group, part in enumerate(np.split(change, site.group))]
            )
    editor = GraphEditor(model)
    for site in wanted:
        shift = shifts[site.name]
        old = constant_array(site.bias).reshape(-1) if site.bias is not None else np.zeros(len(shift))
        base = site.bias.name if site.bias is not None else f"{site.weight.name}_bias"
        if len(site.node.inputs) < 3:
            site.node.resize_inputs(3)
        site.node.replace_input_with(
            2, editor.constant(f"{base}_corrected", (old - shift).astype(np.float32))
        )
    return [site.name for site in wanted]
