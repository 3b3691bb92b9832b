"""SmoothQuant: move outliers of activations into the weights before both are rounded (Xiao et al., 2022)."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from sparsecc.compilation import Compilation
from sparsecc.graph.linear_layers import LinearLayer
from sparsecc.passes.quantize.activation_ranges import observed
from sparsecc.passes.quantize.scale_inputs import scale_inputs
from sparsecc.passes.weights.linear_layers import find_layers


def smooth_activations(model: ir.Model, compilation: Compilation, alpha: float) -> dict[str, bool]:
    """Scale the inputs of matrix products by max|x|^alpha / max|w|^(1-alpha), exactly undone in the weights.

    Only where the division folds into a LayerNormalization, so that it costs nothing at run time.
    Gives value name -> whether it was smoothed.
    """
    layers, _ = find_layers(model)
    by_value: dict[str, list[LinearLayer]] = {}
    for layer in layers:
        if layer.op_type != "Conv":
            by_value.setdefault(layer.data.name or "", []).append(layer)
    foldable = {name: readers for name, readers in by_value.items() if _is_foldable(readers)}
    largest = _largest_inputs(model, list(foldable), compilation)
    smoothed = dict.fromkeys(by_value, False)
    for name, readers in foldable.items():
        weights = np.max([np.abs(layer.matrix(layer.array())).max(axis=0) for layer in readers], axis=0)
        scale = np.maximum(largest[name], 1e-5) ** alpha / np.maximum(weights, 1e-5) ** (1 - alpha)
        smoothed[name] = scale_inputs(model, readers, np.maximum(scale, 1e-5).astype(np.float32))
    return smoothed


def _is_foldable(readers: list[LinearLayer]) -> bool:
    value = readers[0].data
    producer = value.producer()
    if producer is None or producer.op_type != "LayerNormalization" or value.is_graph_output():
        return False
    return set(value.consumers()) == {layer.node for layer in readers}


def _largest_inputs(model: ir.Model, names: list[str], compilation: Compilation) -> dict[str, np.ndarray]:
    """max|x| per channel (last axis) of each value over the calibration set."""
    largest: dict[str, np.ndarray] = {}
    for name, array in observed(model, names, compilation):
        top = np.abs(array).reshape(-1, array.shape[-1]).max(axis=0)
        largest[name] = np.maximum(largest[name], top) if name in largest else top
    return largest
