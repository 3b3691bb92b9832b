"""fp16 and bf16: every float tensor that may be half is, with a cast wherever the two meet.

Which tensors may is read from the ONNX operator schemas: a type variable that allows the half type follows,
one that does not stays float32. A strongly typed parser finds no mixed operands.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir

from sparsecc.compilation import Compilation
from sparsecc.escaping import quoted
from sparsecc.ir.graph_editor import GraphEditor
from sparsecc.ir.subgraphs import bodies_of, has_body
from sparsecc.ir.versions import raise_opset
from sparsecc.passes.base import PassResult
from sparsecc.passes.quantize.activation_ranges import collect
from sparsecc.passes.quantize.body_ranges import ENTERED
from sparsecc.passes.quantize.float16_range import (
    FP16_MAX,
    SATURATES,
    deep_sums,
    fit_batch_norms,
    outside_range,
)
from sparsecc.passes.quantize.spec import QuantizationPlan, ValueSpec
from sparsecc.passes.weights.linear_layers import constant_array
from sparsecc.remarks import Remark
from sparsecc.rules import Trait, traits_of
from sparsecc.rules.value_types import _type_string, value_types
from sparsecc.runtime.emulated_blocks import DOMAIN, FROM_MXFP8, TO_MXFP8, unblocked

HALF_TYPES = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}
TYPE_NAMES = {"fp16": "tensor(float16)", "bf16": "tensor(bfloat16)"}
MINIMUM_OPSET = {"fp16": 13, "bf16": 22}
BF16_MAX = (2 - 2.0**-7) * 2.0**127
"""3.3895e38. float32 goes to 3.4028e38, which masks hold and which would round to infinity."""
FP16_INFINITE = 65520.0
"""From here on a number rounds to infinity in fp16, and is clipped instead."""
LARGE = 30000.0
NAMED = 3
"""Constants that the warning of clipped ones names."""
SMALLEST_SCALE = 2.0**-20
"""A quantization scale below this would round to zero or to a bit or two in fp16."""

KEPT_FLOAT = frozenset({"Pow", "ReduceSumSquare", "ReduceL2", "ReduceLogSumExp", "CumSum", "Range", "Resize"})
"""Operators that overflow or lose too much in half, or whose half kernels are missing where it matters."""

KEEP_TYPE = frozenset({"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "EyeLike"})
"""Operators that name the type of their result themselves."""


def convert_to_half(
    model: ir.Model,
    plan: QuantizationPlan,
    compilation: Compilation,
    type_: str,
    exclude: Collection[str] = (),
    *,
    keep_io: bool = True,
) -> PassResult:
    """Convert in place. `keep_io` leaves graph inputs and outputs in float32."""
    raise_opset(model, MINIMUM_OPSET[type_])
    kept = dict.fromkeys(exclude, "left in float")
    for node in model.graph.all_nodes():
        if (reason := compilation.target.no_kernel.get((type_, node.op_type))) is not None:
            kept[node.name or ""] = reason
    kept.update(deep_sums(model))
    if type_ == "fp16":
        fit_batch_norms(model)
        kept.update(outside_range(model, value_types(model)))
        if compilation.pass_feeds:
            kept.update(_overflowing(model, compilation))
    conversion = _HalfConversion(model, type_, kept, keep_io)
    conversion.run()
    for name in conversion.halved_constants:
        plan.quantization.setdefault(name, ValueSpec(type_, "weight", symmetric=True).to_json())
    facts: dict[str, Any] = {
        "type": type_,
        "nodes": conversion.converted,
        "casts": conversion.casts,
        "warnings": conversion.warnings,
    }
    return PassResult(facts, tuple(conversion.remarks))


def _overflowing(model: ir.Model, compilation: Compilation) -> dict[str, str]:
    """Nodes that read or write values near the limit of fp16 on the calibration data.

    Infinity is no such value: masks and logarithms of zero have it on purpose, and fp16 has it too.
    """
    run = model.clone()
    unblocked(run)
    types = value_types(run)
    floats = [
        output.name
        for node in run.graph.all_nodes()
        for output in node.outputs
        if output.name and types.get(output) == ir.DataType.FLOAT
    ]
    if not floats:
        return {}
    stats = collect(run, floats, compilation, histogram=False, level="none", infinite=True)
    large = {name for name, seen in stats.items() if max(-seen.low, seen.high) > LARGE}
    reason = f"a value it touches exceeds {LARGE:.0f}: too near the limit of fp16"
    return {
        node.name or "": reason
        for node in model.graph.all_nodes()
        if any(value is not None and value.name in large for value in (*node.inputs, *node.outputs))
    }


@dataclass
class _HalfConversion:
    model: ir.Model
    type: str
    kept: dict[str, str]
    keep_io: bool
    converted: list[str] = field(default_factory=list)
    halved_constants: list[str] = field(default_factory=list)
    remarks: list[Remark] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    casts: int = 0
    clipped: dict[str, float] = field(default_factory=dict)
    """Constant -> its number furthest beyond the range of fp16, where more than a bound reads it."""
    _casts: dict[tuple[ir.Value, ir.DataType], ir.Value] = field(default_factory=dict)
    _constants: dict[ir.Value, ir.Value] = field(default_factory=dict)

    def run(self) -> None:
        self.half = HALF_TYPES[self.type]
        self.editor = GraphEditor(self.model)
        self.opset = self.model.opset_imports.get("", 1)
        graph = self.model.graph
        graph.sort()
        self.types = value_types(self.model)
        if not self.keep_io:
            for value in graph.inputs:
                self._retype(value)
        self._convert_graph(graph, keep_outputs=self.keep_io)
        self.editor.finish()
        if self.clipped:
            self.warnings.append(_told_of_clipping(self.clipped))

    def _convert_graph(self, graph: ir.Graph, *, keep_outputs: bool) -> None:
        """`keep_outputs` leaves the outputs of the graph in float32, behind casts."""
        for node in list(graph):
            self._convert(node)
        for value in dict.fromkeys(graph.outputs) if keep_outputs else ():  # a value may be an output twice
            if self.types.get(value) == self.half:
                cast = self._cast(value, ir.DataType.FLOAT)
                self.editor.replace_output(value, cast)
                cast.type, value.type = ir.TensorType(ir.DataType.FLOAT), ir.TensorType(self.half)

    def _convert(self, node: ir.Node) -> None:
        if _restores_blocks(node):
            self._meet_blocks(node)
            return
        reason = self._why_not(node)
        if reason:
            if any(self._is_float(value) for value in (*node.inputs, *node.outputs)):
                self.remarks.append(Remark(node.name or "", reason))
            self._keep(node)
            return
        if has_body(node):  # what goes in and comes out of bodies stays float32
            self._keep(node, bodies=False)
            for body in bodies_of(node):
                self._convert_graph(body, keep_outputs=True)
            return
        schema = onnx.defs.get_schema(node.op_type, self.opset, "")
        follows = half_variables(schema, TYPE_NAMES[self.type])
        for index, value in enumerate(node.inputs):
            wanted = self.half if _type_string(schema.inputs, index) in follows else ir.DataType.FLOAT
            self._feed(node, index, value, wanted)
        self._convert_attributes(node)
        for index, output in enumerate(node.outputs):
            if self._is_float(output) and _type_string(schema.outputs, index) in follows:
                self._retype(output)
        if any(self.types.get(value) == self.half for value in node.outputs):
            self.converted.append(node.name or "")

    def _meet_blocks(self, node: ir.Node) -> None:
        """NVFP4 comes of float32 and becomes it, as halves hold no scales of scales; MXFP8 is of halves throughout:
        TensorRT-RTX's builder breaks down at a Cast between its DequantizeLinear and a product."""
        if node.op_type == FROM_MXFP8:
            node.attributes["output_dtype"] = ir.Attr("output_dtype", ir.AttributeType.INT, self.half.value)
            self._retype(node.outputs[0])
        elif node.op_type == TO_MXFP8:
            self._feed(node, 0, node.inputs[0], self.half)
        else:
            self._keep(node)

    def _keep(self, node: ir.Node, *, bodies: bool = True) -> None:
        """Let a node, with all in its bodies, read float32."""
        for inner in (node, *(one for body in bodies_of(node) if bodies for one in body.all_nodes())):
            for index, value in enumerate(inner.inputs):
                self._feed(inner, index, value, ir.DataType.FLOAT)

    def _why_not(self, node: ir.Node) -> str:
        if node.name in self.kept:
            return self.kept[node.name or ""]
        if node.domain not in ("", "ai.onnx"):
            return f"operator of {node.domain}: kept in float32"
        if node.op_type in KEPT_FLOAT:
            return f"{node.op_type} is kept in float32 for its range"
        if has_body(node):
            return "" if node.op_type in ENTERED else f"{node.op_type} holds a graph that is left in float32"
        if self._only_joins_floats(node):
            return "it moves numbers that are float32, and so loses nothing"
        if not onnx.defs.has(node.op_type, self.opset, ""):
            return f"operator {node.op_type} is not known at opset {self.opset}"
        schema = onnx.defs.get_schema(node.op_type, self.opset, "")
        follows = half_variables(schema, TYPE_NAMES[self.type])
        floats = [i for i, value in enumerate(node.inputs) if self._was_float(value)]
        outputs = [i for i, value in enumerate(node.outputs) if self._was_float(value)]
        formal = [_type_string(schema.inputs, i) for i in floats] + [
            _type_string(schema.outputs, i) for i in outputs
        ]
        if formal and not any(name in follows for name in formal):
            return f"{node.op_type} has no {self.type} form at opset {self.opset}"
        unknown = [
            value.name
            for i, value in enumerate(node.inputs)
            if value is not None and value not in self.types and _type_string(schema.inputs, i) in follows
        ]
        if unknown:
            return f"the type of its operand '{unknown[0]}' is not known"
        if node.op_type in KEEP_TYPE:
            return f"{node.op_type} keeps its type"
        return ""

    def _only_joins_floats(self, node: ir.Node) -> bool:
        """Whether a node only moves numbers that nodes which stay in float32 give."""
        read = [value for value in node.inputs if self._was_float(value)]
        moves = node.op_type == "Concat" or Trait.MOVES in traits_of(node)
        return (
            moves and bool(read) and all(self._is_float(v) and v is not None and v.producer() for v in read)
        )

    def _convert_attributes(self, node: ir.Node) -> None:
        """Cast and ConstantOfShape name their result's type themselves."""
        if node.op_type == "Cast" and node.attributes["to"].as_int() == ir.DataType.FLOAT:
            node.attributes["to"] = ir.Attr("to", ir.AttributeType.INT, self.half.value)
        if node.op_type == "ConstantOfShape":
            fill = node.attributes.get("value")
            number = np.zeros(1, np.float32) if fill is None else fill.as_tensor().numpy()
            if number.dtype == np.float32:
                self._note_clipping(node.outputs[0].name or "", number)
                node.attributes["value"] = ir.Attr(
                    "value", ir.AttributeType.TENSOR, self._half_tensor(number)
                )

    def _feed(self, node: ir.Node, index: int, value: ir.Value | None, wanted: ir.DataType) -> None:
        """Give one input the wanted one of the two float types; other types stay as they are."""
        if value is None or self.types.get(value) not in (ir.DataType.FLOAT, self.half):
            return
        if self.types[value] == wanted:
            return
        is_constant = value.const_value is not None and value.is_initializer() and not value.is_graph_input()
        is_scale = index == 1 and node.op_type in ("QuantizeLinear", "DequantizeLinear")
        if is_constant and node.op_type not in SATURATES:
            self._note_clipping(value.name or "", constant_array(value))
        replacement = self._half_constant(value, is_scale) if is_constant else self._cast(value, wanted)
        node.replace_input_with(index, replacement)

    def _cast(self, value: ir.Value, wanted: ir.DataType) -> ir.Value:
        key = (value, wanted)
        if key not in self._casts:
            cast = self.editor.add_behind(
                value, "Cast", [value], attributes={"to": wanted.value},
                base=f"{value.name}_{wanted.name.lower()}", dtype=wanted, like=value,
            )  # fmt: skip
            self.types[cast] = wanted
            self._casts[key] = cast
            self.casts += 1
        return self._casts[key]

    def _half_constant(self, value: ir.Value, is_scale: bool) -> ir.Value:
        if value not in self._constants:
            numbers = constant_array(value)
            if is_scale:
                numbers = np.maximum(numbers, SMALLEST_SCALE)
            name = value.name or ""
            constant = self.editor.constant(f"{name}_{self.type}", self._half_tensor(numbers))
            self.types[constant] = self.half
            self._constants[value] = constant
            self.halved_constants.append(name)
        return self._constants[value]

    def _half_tensor(self, numbers: np.ndarray) -> ir.TensorProtocol:
        """Clipped to the largest number; infinities stay: masks of them are exact in 16 bits too."""
        largest = FP16_MAX if self.type == "fp16" else BF16_MAX
        fits = np.where(np.isfinite(numbers), np.clip(numbers, -largest, largest), numbers)
        if self.type == "fp16":
            return ir.tensor(fits.astype(np.float16))
        return ir.tensor(fits.astype(ml_dtypes.bfloat16), dtype=ir.DataType.BFLOAT16)

    def _note_clipping(self, name: str, numbers: np.ndarray) -> None:
        """bf16 clips by no more than it rounds."""
        if self.type == "fp16":
            finite = numbers[np.isfinite(numbers)]
            furthest = max(finite.max(initial=0), finite.min(initial=0), key=abs)
            if abs(furthest) >= FP16_INFINITE:
                self.clipped[name] = float(furthest)

    def _retype(self, value: ir.Value) -> None:
        if self._is_float(value):
            self.types[value] = self.half
            value.type = ir.TensorType(self.half)

    def _is_float(self, value: ir.Value | None) -> bool:
        return value is not None and self.types.get(value) == ir.DataType.FLOAT

    def _was_float(self, value: ir.Value | None) -> bool:
        return value is not None and self.types.get(value) in (ir.DataType.FLOAT, self.half)


def _restores_blocks(node: ir.Node) -> bool:
    """Whether a node turns NVFP4 or MXFP8, or scales of theirs, into floats, or floats into them."""
    if node.domain == DOMAIN:
        return True
    stored = node.inputs[0] if node.op_type == "DequantizeLinear" and not node.domain else None
    if stored is None:
        return False
    readers = (use for use in node.outputs[0].uses() if use.idx == 1)
    return stored.dtype == ir.DataType.FLOAT4E2M1 or any(_restores_blocks(use.node) for use in readers)


def _told_of_clipping(clipped: dict[str, float]) -> str:
    named = [f"{quoted(name)} ({number:.3g})" for name, number in clipped.items()]
    more = f" and {len(named) - NAMED} more" if len(named) > NAMED else ""
    return (
        f"constants beyond fp16 are clipped to its largest number, {FP16_MAX:.0f}: {', '.join(named[:NAMED])}{more}; "
        "what they mask throughout, such as samples of padding alone, differs"
    )


def half_variables(schema: onnx.defs.OpSchema, half: str) -> set[str]:
    """The type variables of an operator that may be the half type as well as float."""
    return {
        constraint.type_param_str
        for constraint in schema.type_constraints
        if half in constraint.allowed_type_strs and "tensor(float)" in constraint.allowed_type_strs
    }
