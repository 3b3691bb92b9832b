"""Static int8 and fp8: decide, calibrate, lower for the target, and say what each tensor lost."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx_ir as ir

from sparsecc.compilation import Compilation
from sparsecc.data.ranges import read_ranges
from sparsecc.errors import InputError
from sparsecc.graph.linear_layers import SINGLE_OR_HALF
from sparsecc.ir.versions import raise_opset
from sparsecc.options import SYNTHETIC
from sparsecc.passes.quantize.activation_products import activation_products
from sparsecc.passes.quantize.activation_ranges import (
    ValueStats,
    choose_range,
    collect,
    warnings_of,
)
from sparsecc.passes.quantize.body_ranges import entered_nodes
from sparsecc.passes.quantize.lift import Ranges
from sparsecc.passes.quantize.lower_onnxruntime import OnnxRuntimeLowering, restored_weight
from sparsecc.passes.quantize.lower_tensorrt import TensorRTLowering
from sparsecc.passes.quantize.qoperator import to_integer_operators
from sparsecc.passes.quantize.select_layers import (
    QUANTIZED_OUTPUTS,
    Decision,
    decide_onnxruntime,
    decide_tensorrt,
    fused_result,
)
from sparsecc.passes.quantize.spec import (
    FP8_MAX,
    SMALLEST,
    QuantizationSpec,
    Scale,
    ValueSpec,
    fake_quantize,
    scale_of_range,
    weight_scale,
)
from sparsecc.passes.quantize.stored_weights import stored_nodes, weights_of
from sparsecc.passes.quantize.underflow import LEVELS, TOO_FINE, UNSEEN
from sparsecc.passes.quantize.unsupported import without_kernel
from sparsecc.passes.weights.linear_layers import find_layers
from sparsecc.remarks import Remark
from sparsecc.rules import Trait, traits_of
from sparsecc.runtime.numerics import sqnr

PER_CHANNEL_OPSET = 13
FP8_OPSET = 19


@dataclass(frozen=True)
class StaticOptions:
    """How static quantization is done; see `Quantize` for the meaning of each."""

    type: str = "int8"
    method: str = "minmax"
    percentile: float = 99.99
    per_channel: bool = True
    reduce_range: bool = False
    scheme: str = "auto"
    beyond_layers: bool = False
    """Whether, where the target can, products of two activations and layers in bodies are integers too, and weights
    that no integer kernel reads are stored in 8 bits."""


@dataclass
class StaticQuantizer:
    """Statistics collected once; `lower` may then be asked for any subset of the layers."""

    model: ir.Model
    compilation: Compilation
    options: StaticOptions
    lifted: Ranges = field(default_factory=dict)
    """Ranges that the model came with."""

    def __post_init__(self) -> None:
        raise_opset(self.model, FP8_OPSET if self.options.type == "fp8" else PER_CHANNEL_OPSET)
        self.is_tensorrt = self.compilation.target.dialect == "tensorrt"
        takes_products = self.options.beyond_layers and self.fuses_matmul
        self.products = activation_products(self.model) if takes_products else {}
        self.no_scale: dict[str, str] = {}
        self.ranges: dict[str, tuple[float, float]] = {}
        self.whole = self.decide(self.model, ())
        given = self._given()
        names = [name for name in {**self.whole.values, **self.whole.rights} if name not in given]
        self.stats: dict[str, ValueStats] = {}
        if names and not self.compilation.pass_feeds:
            who = "--ranges says" if self.compilation.options.ranges else "the model says"
            raise InputError(
                f"{who} nothing of '{names[0]}', one of {len(names)} values of {len(self.whole.values)} that "
                "need a range: give --calib too, which finds those that are missing"
            )
        if names:
            self.stats = collect(
                self.model, names, self.compilation, histogram=self.options.method != "minmax"
            )
        self.ranges = {
            name: choose_range(seen, self.options.method, percentile=self.options.percentile)
            for name, seen in self.stats.items()
        } | given
        self.no_scale = dict(self._why_no_scale())

    def _why_no_scale(self) -> Iterator[tuple[str, str]]:
        """Node -> why what it reads or gives has no scale: nothing was seen of it, or float32 holds none."""
        layers = self.whole.layers
        for node in (*(layer.node for layer in layers), *self.whole.followers, *self.whole.products):
            touched = (*node.inputs, *node.outputs, fused_result(node))
            roots = {self.whole.root(value.name or "") for value in touched if value is not None}
            reach = [_largest(self.ranges[name]) for name in roots if name in self.ranges]
            if not all(reach):
                yield node.name or "", UNSEEN
            elif min(reach, default=1.0) <= FP8_MAX * SMALLEST:
                yield node.name or "", TOO_FINE
        for layer in layers:
            step = _largest(self.range(layer.data.name or "")) / LEVELS
            weight = weight_scale(layer.array(), layer.out_axis)
            if 0 < step * float(weight.min(initial=1.0)) <= SMALLEST:
                yield layer.name, TOO_FINE

    def _given(self) -> dict[str, tuple[float, float]]:
        """Ranges of `--ranges`, and then those that the model came with, for values that need one. InputError where
        the file names none of them."""
        path = self.compilation.options.ranges
        lifted = {name: self.lifted[name] for name in self.whole.values if name in self.lifted}
        if path is None or not self.whole.values:
            return lifted
        known = read_ranges(Path(path))
        found = {name: known[name] for name in self.whole.values if name in known}
        if not found:
            example = next(iter(self.whole.values))
            raise InputError(
                f"--ranges names no value that becomes integers, such as '{example}': names are those of the ONNX file"
            )
        return lifted | found

    @property
    def fuses_matmul(self) -> bool:
        """Whether matrix products become ONNX Runtime's own operator instead of standard Q/DQ."""
        return self.compilation.target.dialect == "onnxruntime" and self.options.scheme == "auto"

    def decide(self, model: ir.Model, exclude: Collection[str]) -> Decision:
        """What would be quantized of `model` (this one or a clone) when `exclude` stays float; of values whose range
        nobody saw nothing is."""
        in_bodies = self.options.beyond_layers and not self.is_tensorrt
        layers, remarks = find_layers(model, in_bodies=in_bodies)
        if in_bodies:
            known = set(entered_nodes(model.graph))
            layers = [layer for layer in layers if layer.node in known]
        exclude = {*exclude, *self.no_scale}
        if self.is_tensorrt:
            decision = decide_tensorrt(model, layers, exclude)
        else:
            outputs = QUANTIZED_OUTPUTS if self.fuses_matmul else QUANTIZED_OUTPUTS | {"MatMul"}
            decision = decide_onnxruntime(
                model,
                layers,
                exclude,
                outputs,
                self.products,
                self.lifted,
                in_bodies=in_bodies,
                swishes=self.fuses_matmul,
            )
            decision.stored = stored_nodes(model, exclude) if self.options.beyond_layers else []
        if self.ranges:
            decision.leave_out({name for name in decision.values if self.whole.root(name) not in self.ranges})
        taken = {node.name for node in (*decision.products, *decision.stored)}
        others = (*remarks, *without_kernel(model, ()), *(Remark(*one) for one in self.no_scale.items()))
        kept = [remark for remark in decision.remarks if remark.where not in self.no_scale]
        decision.remarks = [*(remark for remark in others if remark.where not in taken), *kept]
        return decision

    def lower(self, model: ir.Model, exclude: Collection[str] = ()) -> Decision:
        """Write Q/DQ into `model`, leaving the named nodes float. Values without statistics are a bug."""
        decision = self.decide(model, exclude)
        scales = {name: self.scale(name) for name in decision.values}
        rights = {name: self.right_scale(name) for name in decision.rights}
        if self.is_tensorrt:
            TensorRTLowering(model, decision, scales, self.options.type).run()
        else:
            limit = 63 if self.options.reduce_range else 127
            OnnxRuntimeLowering(
                model, decision, scales, rights, self.options.per_channel, limit, self.fuses_matmul
            ).run()
            if self.options.scheme == "qoperator":
                to_integer_operators(model, self.compilation.scratch.folder)
        return decision

    def range(self, name: str) -> tuple[float, float]:
        """The real range of a value. Where more stays in float, one that had shared a scale has its own again."""
        return self.ranges[self.whole.root(name)]

    def scale(self, name: str) -> Scale:
        """The scale of one activation in the target's type."""
        low, high = self.range(name)
        type_, symmetric = self.activation_form(name)
        return scale_of_range(low, high, type_, symmetric=symmetric)

    def right_scale(self, name: str) -> Scale:
        """The scale of the second operand of a product: its kernel multiplies by signed integers, as by weights."""
        return scale_of_range(*self.range(name), "int8", symmetric=True)

    def activation_form(self, name: str) -> tuple[str, bool]:
        """(type, symmetric) of an activation on this target.

        int8 of ONNX Runtime (ARM64) is symmetric, save for values that are never negative: their zero point
        of -128 uses all 8 bits, and lets the Relu before them vanish into the integer kernel.
        """
        if self.options.type == "fp8":
            return "fp8", True
        if self.is_tensorrt:
            return "int8", True
        type_ = self.compilation.target.activation
        return type_, type_ == "int8" and self.range(name)[0] < 0

    def spec(self, decision: Decision) -> QuantizationSpec:
        """The neutral spec of a decision, for the plan."""
        spec = QuantizationSpec(nodes=decision.names)
        for name in decision.rights:
            low, high = self.range(name)
            source = self._source(name)
            spec.values[name] = ValueSpec("int8", "activation", source=source, low=low, high=high)
        for name in decision.values:
            low, high = self.range(name)
            type_, symmetric = self.activation_form(name)
            spec.values[name] = ValueSpec(
                type_, "activation", symmetric=symmetric, source=self._source(name), low=low, high=high
            )
        for layer in decision.layers:
            granularity = "channel" if self.options.per_channel or self.is_tensorrt else "tensor"
            axis = layer.out_axis if granularity == "channel" else None
            weight_type = "fp8" if self.options.type == "fp8" else "int8"
            spec.values[layer.weight.name or ""] = ValueSpec(weight_type, "weight", granularity, axis)
        for value in (value for node in decision.stored for value in weights_of(node)):
            spec.values[value.name or ""] = ValueSpec("int8", "weight", "channel", 1)
        return spec

    def _source(self, name: str) -> str:
        return self.options.method if self.whole.root(name) in self.stats else "given"

    def facts(self, decision: Decision) -> dict[str, Any]:
        """Signal to noise per tensor in dB, clipped shares, and warnings about the calibration set."""
        noise: dict[str, float] = {}
        warnings = warnings_of(self.stats, [value.name or "" for value in self.model.graph.inputs])
        for name in decision.values:
            seen = self.stats.get(self.whole.root(name))
            if seen is None or not seen.sample.size:
                continue
            noise[name] = round(sqnr(seen.sample, fake_quantize(seen.sample, self.scale(name))), 2)
            low, high = self.range(name)
            clipped = seen.clipped(low, high)
            if clipped > 0.01:
                warnings.append(f"value '{name}': {clipped:.1%} of the calibration values are clipped")
        missing = [name for name in decision.values if self.lifted and self.whole.root(name) in self.stats]
        if missing and self.compilation.options.calib == SYNTHETIC:
            warnings.append(
                f"the model came in few bits and tells {len(self.lifted)} ranges; {len(missing)} more, as of "
                f"'{missing[0]}', are those of random inputs: give samples with --calib"
            )
        return {"sqnr_db": noise, "warnings": warnings}


def _largest(limits: tuple[float, float]) -> float:
    return max(-limits[0], limits[1])


def weight_noise(decision: Decision, per_channel: bool) -> dict[str, float]:
    """Signal to noise of every weight in dB; call before lowering."""
    return {
        layer.weight.name or "": round(
            sqnr(layer.array(), restored_weight(layer, per_channel=per_channel)), 2
        )
        for layer in decision.layers
    }


def already_quantized(model: ir.Model) -> Remark | None:
    """What is said of integer operators between inputs and outputs: that a model without float layers is left alone,
    or that they stay beside these."""
    count = sum(Trait.INTEGER in traits_of(node) and not _is_at_border(node) for node in model.graph)
    if not count:
        return None
    kept = "they stay" if has_float_layers(model) else "left as it is"
    return Remark("model", f"already quantized ({count} integer operators): {kept}")


def has_float_layers(model: ir.Model) -> bool:
    """Whether there is anything to quantize."""
    return bool(find_layers(model, SINGLE_OR_HALF)[0])


def _is_at_border(node: ir.Node) -> bool:
    """Whether a node turns an input of the model to float, or floats to its output."""
    if node.op_type == "DequantizeLinear":
        return node.inputs[0] is not None and node.inputs[0].is_graph_input()
    output = node.outputs[0]
    return node.op_type == "QuantizeLinear" and output.is_graph_output() and not output.uses()
