"""int8-dynamic: int8 weights, activations quantized as they come. No calibration; matrix products and LSTMs.

Convolutions stay float: ONNX Runtime's ConvInteger is slower than its float convolution.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import onnx_ir as ir

from sparsecc.compilation import Compilation
from sparsecc.graph.linear_layers import LinearLayer
from sparsecc.ir.graph_editor import GraphEditor
from sparsecc.ir.versions import raise_opset
from sparsecc.passes.base import PassResult
from sparsecc.passes.quantize.integer_lstm import lower_lstm, why_no_integer_lstm
from sparsecc.passes.quantize.spec import (
    QuantizationPlan,
    QuantizationSpec,
    ValueSpec,
    quantize_weight,
    weight_scale,
)
from sparsecc.passes.quantize.unsupported import without_kernel
from sparsecc.passes.weights.linear_layers import find_layers, trailing_bias
from sparsecc.remarks import Remark
from sparsecc.runtime.numerics import sqnr

DYNAMIC_OPSET = 11


def quantize_dynamic(
    model: ir.Model,
    plan: QuantizationPlan,
    compilation: Compilation,
    exclude: Collection[str],
    *,
    reduce_range: bool,
) -> PassResult:
    """Every Gemm and MatMul with a constant weight becomes an integer product, every LSTM too, in bodies as well."""
    raise_opset(model, DYNAMIC_OPSET)
    layers, lstms, remarks = dynamic_layers(model, exclude)
    limit = 63 if reduce_range else 127
    lowering = _Dynamic(GraphEditor(model), limit)
    spec = QuantizationSpec()
    noise: dict[str, float] = {}
    for layer in layers:
        spec.nodes.append(layer.name)
        spec.values[layer.weight.name or ""] = ValueSpec("int8", "weight", "channel", layer.out_axis)
        noise[layer.weight.name or ""] = round(lowering.lower(layer), 2)
    for node in lstms:
        spec.nodes.append(node.name or "")
        weights = lower_lstm(lowering.editor, node, limit)
        noise.update(weights)
        spec.values.update({name: ValueSpec("int8", "weight", "channel", 1) for name in weights})
    remarks.extend(without_kernel(model, ("LSTM",)))
    spec.record(plan)
    lowering.editor.finish()
    facts: dict[str, Any] = {"type": "int8-dynamic", "nodes": spec.nodes, "weight_sqnr_db": noise}
    return PassResult(facts, tuple(remarks))


def dynamic_layers(
    model: ir.Model, exclude: Collection[str]
) -> tuple[list[LinearLayer], list[ir.Node], list[Remark]]:
    """The products and the LSTMs that become integers, and why others do not."""
    layers, remarks = find_layers(model, in_bodies=True)
    taken, lstms = [], []
    for layer in layers:
        if layer.op_type == "Conv":
            remarks.append(Remark(layer.name, "convolution: dynamic int8 convolution is slower than float"))
        elif layer.name in exclude:
            remarks.append(Remark(layer.name, "left in float"))
        else:
            taken.append(layer)
    for node in [node for node in model.graph.all_nodes() if node.op_type == "LSTM" and not node.domain]:
        reason = "left in float" if node.name in exclude else why_no_integer_lstm(node)
        if reason:
            remarks.append(Remark(node.name or "", reason))
        else:
            lstms.append(node)
    return taken, lstms, remarks


class _Dynamic:
    def __init__(self, editor: GraphEditor, limit: int) -> None:
        self.editor = editor
        self.limit = limit
        self._data: dict[str, list[ir.Value]] = {}
        self._weights: dict[tuple[str, int], tuple[ir.Value, ir.Value, ir.Value]] = {}

    def lower(self, layer: LinearLayer) -> float:
        """Replace one layer; the weight's signal to noise in dB."""
        weight = layer.matrix(layer.array()).T
        scale = weight_scale(weight, 1, limit=self.limit)
        levels = quantize_weight(weight, scale, 1, limit=self.limit)
        key = (layer.weight.name or "", layer.out_axis)
        if key not in self._weights:
            self._weights[key] = self._store(key[0], levels, scale)
        bias, result = (
            (layer.bias, layer.node.outputs[0]) if layer.op_type == "Gemm" else trailing_bias(layer.node)
        )
        product = self._product(layer, self._weights[key], bias)
        self.editor.stand_in(result, product)
        return sqnr(weight, levels * scale)

    def _store(self, name: str, levels: np.ndarray, scale: np.ndarray) -> tuple[ir.Value, ir.Value, ir.Value]:
        return (
            self.editor.constant(f"{name}_int8", levels),
            self.editor.constant(f"{name}_scale", scale),
            self.editor.zeros(scale.shape, np.int8),
        )

    def _quantized_data(self, value: ir.Value) -> list[ir.Value]:
        """(integers, scale, zero point) of an activation, made once for all products that read it."""
        name = value.name or ""
        if name not in self._data:
            whole = self.editor.add_behind(
                value, "DynamicQuantizeLinear", [value], base=f"{name}_quantized", dtype=ir.DataType.UINT8
            )
            node = whole.producer()
            assert node is not None
            node.resize_outputs(3)
            node.outputs[1].name = self.editor.fresh(f"{name}_scale")
            node.outputs[1].type = ir.TensorType(ir.DataType.FLOAT)
            node.outputs[2].name = self.editor.fresh(f"{name}_zero_point")
            node.outputs[2].type = ir.TensorType(ir.DataType.UINT8)
            self._data[name] = list(node.outputs)
        return self._data[name]

    def _product(
        self, layer: LinearLayer, weight: tuple[ir.Value, ir.Value, ir.Value], bias: ir.Value | None
    ) -> ir.Value:
        """MatMulInteger -> Cast -> Mul (-> Add): ONNX Runtime fuses this into one kernel."""
        levels, step, zero = self._quantized_data(layer.input_now)
        stored, weight_step, weight_zero = weight

        def add(
            op_type: str, inputs: list[ir.Value], what: str, dtype: ir.DataType, **attributes: int
        ) -> ir.Value:
            base = f"{layer.name}_{what}"
            return self.editor.add(op_type, inputs, attributes, base=base, before=layer.node, dtype=dtype)

        float_ = ir.DataType.FLOAT
        total = add("MatMulInteger", [levels, stored, zero, weight_zero], "int32", ir.DataType.INT32)
        scale = add("Mul", [step, weight_step], "scale", float_)
        real = add("Cast", [total], "cast", float_, to=float_.value)
        product = add("Mul", [real, scale], "real", float_)
        return product if bias is None else add("Add", [product, bias], "biased", float_)
