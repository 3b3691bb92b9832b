"""Quantize/DequantizeLinear pairs in the form that TensorRT and TensorRT-RTX accept and accelerate."""

from __future__ import annotations

from dataclasses import dataclass, field

import ml_dtypes
import numpy as np
import onnx_ir as ir

from sparsecc.graph.linear_layers import LinearLayer
from sparsecc.ir.graph_editor import GraphEditor
from sparsecc.passes.quantize.layer_scale import layer_scale
from sparsecc.passes.quantize.select_layers import Decision
from sparsecc.passes.quantize.spec import Scale


@dataclass
class TensorRTLowering:
    """Writes one decision into a model.

    Symmetric with zero point 0 throughout. Activations get Q/DQ at the inputs of integer nodes and on the
    residual operand of Add, never on outputs. Weights stay float constants before their Q, so that the
    builder sees 2:4 zeros and folds the Q itself. Biases stay float. `type` is int8 or fp8 (E4M3).
    """

    model: ir.Model
    decision: Decision
    scales: dict[str, Scale]
    type: str = "int8"
    _readers: dict[str, ir.Value] = field(default_factory=dict)
    _weights: dict[tuple[str, int], ir.Value] = field(default_factory=dict)

    def run(self) -> None:
        """Edit the model in place."""
        self.editor = GraphEditor(self.model)
        for name, value in self.decision.values.items():
            self._readers[name] = self._pair(value, self.scales[name].scale, None)
        for layer in self.decision.layers:
            layer.node.replace_input_with(0, self._readers[layer.data.name or ""])
            layer.node.replace_input_with(1, self._weight(layer))
        for node in self.decision.followers:
            self._route_residual(node)
        self.editor.finish()

    def _route_residual(self, node: ir.Node) -> None:
        """Only the skip operand of an Add is read quantized; the other comes from a convolution."""
        for index, value in enumerate(node.inputs):
            if value is None or value.name not in self._readers:
                continue
            producer = value.producer()
            if producer is not None and producer.op_type == "Conv" and len(value.uses()) == 1:
                continue
            node.replace_input_with(index, self._readers[value.name])
            return

    def _weight(self, layer: LinearLayer) -> ir.Value:
        key = (layer.weight.name or "", layer.out_axis)
        if key not in self._weights:
            scale = layer_scale(layer, layer.out_axis, self.type)
            self._weights[key] = self._pair(layer.weight, scale, layer.out_axis)
        return self._weights[key]

    def _pair(self, value: ir.Value, scale: np.ndarray, axis: int | None) -> ir.Value:
        name = value.name or ""
        dtype = np.dtype(ml_dtypes.float8_e4m3fn) if self.type == "fp8" else np.dtype(np.int8)
        step = self.editor.constant(f"{name}_scale", scale)
        zero = self.editor.zeros(scale.shape, dtype)
        attributes = {"axis": axis} if axis is not None else {}
        quantized = self.editor.add_behind(
            value, "QuantizeLinear", [value, step, zero], attributes=attributes,
            base=f"{name}_quantized", dtype=ir.DataType.from_numpy(dtype), like=value,
        )  # fmt: skip
        return self.editor.add_behind(
            quantized, "DequantizeLinear", [quantized, step, zero], attributes=attributes,
            base=f"{name}_restored", dtype=ir.DataType.FLOAT, like=value,
        )  # fmt: skip
