"""Quantize/DequantizeLinear pairs in the form that ONNX Runtime's integer kernels pick up."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from sparsecc.graph.linear_layers import LinearLayer
from sparsecc.ir.graph_editor import GraphEditor, graph_of
from sparsecc.passes.quantize.integer_matmul import fuse_integer_matmul
from sparsecc.passes.quantize.layer_scale import layer_scale
from sparsecc.passes.quantize.select_layers import Decision
from sparsecc.passes.quantize.spec import Scale, along, quantize_weight
from sparsecc.passes.quantize.stored_weights import store_weights
from sparsecc.passes.weights.linear_layers import constant_array


@dataclass
class _Stored:
    """The integers of a weight, their scale and zero points; and what they stand for, in each graph."""

    operands: list[ir.Value]
    scale: np.ndarray
    restored: dict[ir.Graph, ir.Value] = field(default_factory=dict)


@dataclass
class OnnxRuntimeLowering:
    """Writes one decision into a model.

    Activations are Q/DQ pairs, also on the outputs of integer nodes; weights are stored as int8 per output
    channel with only a DQ; biases as int32 with the scale of the product. `weight_limit` is 127, or 63 for
    x64 processors without VNNI, whose 8-bit products saturate. Zero weights stay zero.
    `fuses_matmul` is for ONNX Runtime alone: its integer product with float result, its integer LSTM, and biases of
    Conv in float, which it rounds to the same int32 when it loads a model: a file then holds no scale for each.
    In bodies of If, Loop and Scan every DQ stands beside its reader: kernels are found within one graph.
    """

    model: ir.Model
    decision: Decision
    scales: dict[str, Scale]
    rights: dict[str, Scale] = field(default_factory=dict)
    per_channel: bool = True
    weight_limit: int = 127
    fuses_matmul: bool = False
    _readers: dict[str, ir.Value] = field(default_factory=dict)
    _inner: dict[tuple[str, ir.Graph], ir.Value] = field(default_factory=dict)
    _weights: dict[tuple[str, int | None], _Stored] = field(default_factory=dict)

    def run(self) -> None:
        """Edit the model in place."""
        self.editor = GraphEditor(self.model)
        for layer in self.decision.layers:
            self._lower_weight(layer)
        values = dict(self.decision.values)
        for node in self.decision.followers:
            values.update({o.name or "": o for o in node.outputs if o.name in self.decision.aliases})
        for name, value in values.items():
            self._lower_value(name, value)
        integer_nodes = [layer.node for layer in self.decision.layers] + self.decision.followers
        for node in integer_nodes:
            self._route(node)
        for node in self.decision.products:
            self._route(node, 1)
        for name, value in self.decision.rights.items():
            self._lower_right(value, self.rights[name])
        products = [layer.node for layer in self.decision.layers if layer.op_type == "MatMul"]
        for node in [*products, *self.decision.products] if self.fuses_matmul else ():
            fuse_integer_matmul(self.editor, node)
        store_weights(self.editor, self.decision.stored, self.weight_limit, has_lstm=self.fuses_matmul)
        self.editor.finish()

    def _lower_right(self, value: ir.Value, scale: Scale) -> None:
        """A pair for the second operand of products, which others go on to read as it was."""
        name, step = value.name or "", self.editor.constant(f"{value.name}_right_scale", scale.scale)
        zero = self.editor.zeros((), np.int8)
        quantized = self.editor.add_behind(
            value,
            "QuantizeLinear",
            [value, step, zero],
            base=f"{name}_int8",
            dtype=ir.DataType.INT8,
            like=value,
        )
        restored = self.editor.add_behind(
            quantized, "DequantizeLinear", [quantized, step, zero], base=f"{name}_int8_restored",
            dtype=ir.DataType.FLOAT, like=value,
        )  # fmt: skip
        for node in self.decision.products:
            if node.inputs[1] in (value, self._readers.get(name)):
                node.replace_input_with(1, restored)

    def _lower_value(self, name: str, value: ir.Value) -> None:
        scale = self.scales[self.decision.root(name)]
        step = self.editor.constant(f"{name}_scale", scale.scale)
        zero = self.editor.constant(f"{name}_zero_point", scale.zero_point)
        uses = tuple(value.uses())
        dtype = ir.DataType.from_numpy(scale.zero_point.dtype)
        quantized = self.editor.add_behind(
            value, "QuantizeLinear", [value, step, zero], base=f"{name}_quantized", dtype=dtype, like=value
        )
        restored = self.editor.add_behind(
            quantized, "DequantizeLinear", [quantized, step, zero], base=f"{name}_restored",
            dtype=ir.DataType.FLOAT, like=value,
        )  # fmt: skip
        self._readers[name] = restored
        if name not in self.decision.full:
            return
        for consumer, index in uses:
            consumer.replace_input_with(index, self._reader(name, consumer))
        if value.is_graph_output():
            self.editor.replace_output(value, restored)

    def _route(self, node: ir.Node, number: int | None = None) -> None:
        """Let the first so many operands of a node, or all, be read from behind their pairs."""
        for index, value in enumerate(node.inputs[:number]):
            if value is not None and value.name in self._readers:
                node.replace_input_with(index, self._reader(value.name, node))

    def _reader(self, name: str, node: ir.Node) -> ir.Value:
        """The DQ of a value in the graph of its reader."""
        restored, graph = self._readers[name], graph_of(node)
        pair = restored.producer()
        assert pair is not None
        if pair.graph is graph:
            return restored
        if (name, graph) not in self._inner:
            self._inner[name, graph] = self.editor.add(
                "DequantizeLinear", pair.inputs, base=f"{name}_restored", before=node, dtype=ir.DataType.FLOAT,
                like=restored,
            )  # fmt: skip
        return self._inner[name, graph]

    def _lower_weight(self, layer: LinearLayer) -> None:
        data_scale = self.scales[self.decision.root(layer.data.name or "")].scale
        axis = layer.out_axis if self.per_channel else None
        weight = layer.array()
        scale = layer_scale(layer, axis, limit=self.weight_limit)
        bias = None
        if layer.bias is not None:
            bias = constant_array(layer.bias).astype(np.float64).reshape(-1)
            least = np.abs(bias) / (float(data_scale) * 2.0**30)
            least = least if scale.ndim else least.max(initial=0.0)
            scale = np.maximum(scale, least.astype(np.float32))
        restored, scale = self._weight(layer, weight, scale, axis)
        layer.node.replace_input_with(1, restored)
        if (
            bias is not None
            and layer.bias is not None
            and not self._is_rounded_at_load(layer, bias.shape, scale)
        ):
            layer.node.replace_input_with(2, self._bias(layer, layer.bias, bias, scale * data_scale))

    def _is_rounded_at_load(self, layer: LinearLayer, bias: tuple[int, ...], scale: np.ndarray) -> bool:
        """Whether ONNX Runtime makes int32 of a float bias: from 1.21 on that of Conv, of Gemm without its kernel."""
        return self.fuses_matmul and layer.is_conv and scale.shape in ((), bias)

    def _weight(
        self, layer: LinearLayer, weight: np.ndarray, scale: np.ndarray, axis: int | None
    ) -> tuple[ir.Value, np.ndarray]:
        """The dequantized weight, once in each graph; one copy of its integers for all layers that share the
        initializer at the same scale."""
        name, graph = layer.weight.name or "", graph_of(layer.node)
        known = self._weights.get((name, axis))
        if known is None or not np.array_equal(known.scale, scale):
            levels = quantize_weight(weight, scale, axis, limit=self.weight_limit)
            stored = self.editor.constant(f"{name}_int8", levels)
            step = self.editor.constant(f"{name}_scale", scale)
            known = _Stored([stored, step, self.editor.zeros(scale.shape, np.int8)], scale)
            self._weights[name, axis] = known
        if graph not in known.restored:
            attributes = {"axis": axis} if axis is not None else {}
            known.restored[graph] = self.editor.add(
                "DequantizeLinear", known.operands, attributes, base=f"{name}_restored", before=self._place(layer),
                dtype=ir.DataType.FLOAT, like=layer.weight,
            )  # fmt: skip
        return known.restored[graph], scale

    def _place(self, layer: LinearLayer) -> ir.Node | None:
        """Where the constants of a layer are restored: in its body, else at the start of the graph."""
        return None if layer.node.graph is self.editor.graph else layer.node

    def _bias(self, layer: LinearLayer, bias: ir.Value, numbers: np.ndarray, scale: np.ndarray) -> ir.Value:
        levels = np.rint(numbers / scale).astype(np.int32)
        stored = self.editor.constant(f"{bias.name}_int32", levels)
        step = self.editor.constant(f"{bias.name}_scale", np.asarray(scale, np.float32))
        zero = self.editor.zeros(np.shape(scale), np.int32)
        attributes = {"axis": 0} if np.ndim(scale) else {}
        return self.editor.add(
            "DequantizeLinear", [stored, step, zero], attributes, base=f"{bias.name}_restored",
            before=self._place(layer), dtype=ir.DataType.FLOAT,
        )  # fmt: skip


def restored_weight(layer: LinearLayer, *, per_channel: bool = True, limit: int = 127) -> np.ndarray:
    """The layer's weight after int8 rounding, in float, for error measures."""
    axis = layer.out_axis if per_channel else None
    weight = layer.array()
    scale = layer_scale(layer, axis, limit=limit)
    return np.asarray(quantize_weight(weight, scale, axis, limit=limit) * along(scale, axis, weight.ndim))
