"""NVFP4 and MXFP8 for TensorRT: matrix products of small floats in blocks, in the form that its ONNX parser takes.

Weights are constants behind DequantizeLinear (NVFP4: ONNX's own, of opset 23, twice, as scales are E4M3; MXFP8:
TensorRT's, since its parser reads no E8M0). Activations are rounded block by block as they come, by TensorRT's dynamic
quantization, for which NVFP4 needs one scale per tensor of the samples.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from sparsecc.compilation import Compilation
from sparsecc.errors import InputError
from sparsecc.graph.linear_layers import LinearLayer
from sparsecc.ir.graph_editor import GraphEditor
from sparsecc.ir.versions import raise_opset
from sparsecc.passes.base import PassResult
from sparsecc.passes.quantize.activation_ranges import collect
from sparsecc.passes.quantize.kind import Kind
from sparsecc.passes.quantize.spec import QuantizationSpec, ValueSpec
from sparsecc.passes.quantize.underflow import UNSEEN
from sparsecc.passes.weights.linear_layers import find_layers
from sparsecc.remarks import Remark
from sparsecc.rules import shapes_of
from sparsecc.runtime.block_floats import FORMATS, BlockFormat, Encoded
from sparsecc.runtime.emulated_blocks import DOMAIN, FROM_MXFP8, TO_MXFP8, TO_NVFP4
from sparsecc.runtime.numerics import sqnr
from sparsecc.shapes.infer import Shapes, infer

if TYPE_CHECKING:
    from sparsecc.passes.quantize.quantize import Quantize
    from sparsecc.plan import Plan

_UNUSED = frozenset(
    "method percentile scheme per_channel reduce_range algorithm block smooth equalize correct_bias".split()
)
"""Options of the pass that other types have; blocks are of the type's own size."""
OPSET, IR_VERSION = 23, 11
"""The first with FLOAT4E2M1."""


class BlockFloat(Kind):
    """Weights and activations of matrix products, with scales per block."""

    folds_batch_norms = False
    stores_tables = False
    advice = "--quantize-option exclude=LAYER leaves what is sensitive in float, --quantize fp8 loses less"

    def require(self, options: Quantize) -> None:
        unused = (field for field in fields(options) if field.name in _UNUSED)
        if given := next((one.name for one in unused if getattr(options, one.name) != one.default), None):
            raise InputError(f"quantize: {given} does nothing for {options.type}: leave it out")

    def needs_data(self, options: Quantize) -> str:
        return options.type if FORMATS[options.type].has_tensor_scale else super().needs_data(options)

    def convert(self, options: Quantize, model: ir.Model, plan: Plan, compilation: Compilation) -> PassResult:
        form = FORMATS[options.type]
        raise_opset(model, OPSET)
        layers, remarks = _layers(model, form, options.exclude)
        scales = {}
        if form.has_tensor_scale:
            stats = collect(model, [layer.source for layer in layers], compilation, histogram=False)
            largest = {name: max(-seen.low, seen.high) for name, seen in stats.items()}
            remarks += [Remark(layer.name, UNSEEN) for layer in layers if not largest[layer.source]]
            layers = [layer for layer in layers if largest[layer.source]]
            scales = {name: form.tensor_scale(reach) for name, reach in largest.items()}
        spec, noise = QuantizationSpec([layer.name for layer in layers]), {}
        lowering = _Lowering(GraphEditor(model), form, scales)
        for layer in layers:
            name, axis = layer.weight.name or "", layer.in_axis
            spec.values[layer.source] = ValueSpec(
                form.name, "activation", "block", -1, form.size, source="max" if scales else "dynamic"
            )
            spec.values[name] = ValueSpec(form.name, "weight", "block", axis, form.size)
            noise[name] = round(sqnr(layer.array(), form.rounded(layer.array(), axis)), 2)
            lowering.lower(layer)
        if layers:
            lowering.finish()
        spec.record(plan)
        return PassResult({"type": form.name, "nodes": spec.nodes, "weight_sqnr_db": noise}, tuple(remarks))


def _layers(
    model: ir.Model, form: BlockFormat, exclude: Collection[str]
) -> tuple[list[LinearLayer], list[Remark]]:
    """Those that TensorRT multiplies in this type, and why the others are left."""
    layers, remarks = find_layers(model)
    shapes, chosen = infer(model, shapes_of), []
    for layer in layers:
        if reason := "left in float" if layer.name in exclude else _why_not(layer, form, shapes):
            remarks.append(Remark(layer.name, reason))
        else:
            chosen.append(layer)
    return chosen, remarks


def _why_not(layer: LinearLayer, form: BlockFormat, shapes: Shapes) -> str:
    inputs, data = layer.shape[layer.in_axis], shapes.of(layer.data)
    if layer.is_conv:
        return f"convolution: TensorRT has {form.name} for matrix products alone"
    if inputs % form.size:
        return f"{inputs} inputs are no multiple of the block of {form.size}"
    if data is None or len(data) not in (2, 3):
        axes = "an unknown number of" if data is None else f"{len(data)}"
        return f"it reads {axes} axes: TensorRT rounds 2 or 3 to blocks"
    return ""


@dataclass
class _Lowering:
    editor: GraphEditor
    form: BlockFormat
    scales: dict[str, float]
    """Of activations, per tensor."""
    _activations: dict[str, ir.Value] = field(default_factory=dict)
    _weights: dict[tuple[str, int], ir.Value] = field(default_factory=dict)

    def lower(self, layer: LinearLayer) -> None:
        """Let a layer read rounded numbers; each value is rounded once."""
        source, key = layer.source, (layer.weight.name or "", layer.in_axis)
        if source not in self._activations:
            self._activations[source] = self._activation(layer.data)
        if key not in self._weights:
            self._weights[key] = self._weight(layer)
        layer.node.replace_input_with(0, self._activations[source])
        layer.node.replace_input_with(1, self._weights[key])

    def finish(self) -> None:
        """Leave the graph tidy and its versions high enough."""
        model = self.editor.model
        model.ir_version = max(model.ir_version or 0, IR_VERSION)
        self.editor.finish()

    def _activation(self, value: ir.Value) -> ir.Value:
        name, size = value.name or "", self.form.size
        blocks: dict[str, Any] = {"axis": -1, "block_size": size}
        scale = self.editor.constant(f"{name}_scale", np.float32(self.scales.get(name, 1.0)))
        if self.form.has_tensor_scale:
            attributes, given = {**blocks, "scale_type": ir.DataType.FLOAT8E4M3FN.value}, [value, scale]
            operator, element, stored = TO_NVFP4, ir.DataType.FLOAT4E2M1, ir.DataType.FLOAT8E4M3FN
        else:
            attributes, given = {**blocks, "output_dtype": ir.DataType.FLOAT8E4M3FN.value}, [value]
            operator, element, stored = TO_MXFP8, ir.DataType.FLOAT8E4M3FN, ir.DataType.UINT8
        levels = self.editor.add_behind(
            value, operator, given, attributes=attributes, base=f"{name}_{self.form.name}", domain=DOMAIN,
            dtype=element, like=value,
        )  # fmt: skip
        node = levels.producer()
        assert node is not None
        node.resize_outputs(2)
        node.outputs[1].name, node.outputs[1].type = (
            self.editor.fresh(f"{name}_scales"),
            ir.TensorType(stored),
        )
        return self._restored(levels, node.outputs[1], scale, -1, name, value, behind=levels)

    def _weight(self, layer: LinearLayer) -> ir.Value:
        name, weight = layer.weight.name or "", layer.array()
        whole = self.form.tensor_scale(float(np.abs(weight).max()))
        encoded: Encoded = self.form.encode(weight, layer.in_axis, whole)
        levels = self.editor.constant(f"{name}_{self.form.name}", encoded.levels)
        scales = self.editor.constant(f"{name}_scales", encoded.scales)
        scale = self.editor.constant(f"{name}_scale", np.float32(whole))
        return self._restored(levels, scales, scale, layer.in_axis, name, layer.weight)

    def _restored(
        self,
        levels: ir.Value,
        scales: ir.Value,
        scale: ir.Value,
        axis: int,
        name: str,
        like: ir.Value,
        behind: ir.Value | None = None,
    ) -> ir.Value:
        """What the blocks stand for, in float32; `scale` is that of the tensor."""
        after, float_ = None if behind is None else behind.producer(), ir.DataType.FLOAT
        blocks: dict[str, Any] = {"axis": axis, "block_size": self.form.size}
        base = f"{name}_restored"
        if not self.form.has_tensor_scale:
            attributes = {**blocks, "output_dtype": float_.value}
            return self.editor.add(
                FROM_MXFP8, [levels, scales], attributes, base=base, after=after, domain=DOMAIN, dtype=float_,
                like=like,
            )  # fmt: skip
        real = self.editor.add(
            "DequantizeLinear", [scales, scale], base=f"{name}_scales_restored", after=after, dtype=float_
        )
        return self.editor.add(
            "DequantizeLinear",
            [levels, real],
            blocks,
            base=base,
            after=real.producer(),
            dtype=float_,
            like=like,
        )
