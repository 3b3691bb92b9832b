"""Weights of 4 or 8 bits with float activations: MatMulNBits for ONNX Runtime, blocked DequantizeLinear elsewhere."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir

from sparsecc.compilation import Compilation
from sparsecc.errors import InputError
from sparsecc.graph.linear_layers import SINGLE_OR_HALF, LinearLayer
from sparsecc.ir.graph_editor import GraphEditor
from sparsecc.ir.mapped import Spool
from sparsecc.ir.versions import raise_opset
from sparsecc.passes.base import PassResult
from sparsecc.passes.quantize.coordinate_descent import round_by_output
from sparsecc.passes.quantize.rounding import Blocks, awq_scale, noise_db, round_by_search, round_to_nearest
from sparsecc.passes.quantize.scale_inputs import scale_inputs
from sparsecc.passes.quantize.spec import QuantizationPlan, QuantizationSpec, ValueSpec
from sparsecc.passes.weights.input_moments import MULTIPLE, InputMoments, walk_inputs
from sparsecc.passes.weights.linear_layers import constant_array, find_layers, trailing_bias
from sparsecc.passes.weights.low_rank import Clock, Paths, layer_clock
from sparsecc.plan import Plan
from sparsecc.remarks import Remark

ALGORITHMS = ("rtn", "kquant", "gptq", "awq")
NAMES = {4: "int4", 8: "int8-weights"}
"""Bits -> the type."""
BLOCKED_OPSET = 21
MIN_INPUTS = 32


@dataclass(frozen=True)
class WeightOnlyOptions:
    """algorithm: rtn, kquant, gptq or awq (these two need calibration); block: inputs per scale; eora: the share of a
    layer's time that a low-rank path may add (needs calibration). 8 bits are rounded to nearest."""

    algorithm: str = "rtn"
    block: int = 32
    accuracy_level: int = 4
    eora: float = 0.0
    bits: int = 4
    in_bodies: bool = False
    """Whether layers in bodies of Loop, Scan and If are taken too: what looks at inputs does not see those."""

    def __post_init__(self) -> None:
        known = ALGORITHMS if self.bits == 4 else ("rtn",)
        if self.algorithm not in known:
            raise InputError(
                f"quantize: unknown {self.type} algorithm '{self.algorithm}': it is one of {', '.join(known)}"
            )
        if self.block < 16 or self.block & (self.block - 1):
            raise InputError(f"quantize: {self.type} block {self.block}: give a power of two from 16")

    @property
    def type(self) -> str:
        return NAMES[self.bits]

    @property
    def stored(self) -> str:
        """What the plan says of the numbers."""
        return f"int{self.bits}"


def quantize_weights(
    model: ir.Model,
    plan: QuantizationPlan,
    compilation: Compilation,
    options: WeightOnlyOptions,
    exclude: Collection[str] = (),
) -> PassResult:
    """Store the weights of Gemm and MatMul in 4 or 8 bits. Convolutions stay float: no runtime has such ones."""
    to_onnxruntime = compilation.target.dialect == "onnxruntime"
    if not to_onnxruntime:
        raise_opset(model, BLOCKED_OPSET)
    is_symmetric = not to_onnxruntime or options.bits == 8
    chosen, remarks = int4_layers(model, options, exclude, to_onnxruntime)
    names, in_float = {layer.name: layer.weight.name or "" for layer in chosen}, None
    if options.algorithm == "awq":
        _scale_all(model, chosen, compilation, options, symmetric=is_symmetric)
        in_float = model.clone()
    editor = GraphEditor(model, Spool(compilation.scratch.folder))
    paths = Paths(editor, options.eora, clock=_clock(compilation, options) if to_onnxruntime else None)
    spec, noise, stored = QuantizationSpec(), {}, []
    store, lower = (_store_packed, _lower_onnxruntime) if to_onnxruntime else (_store_blocked, _lower_blocked)
    for layer, blocks in _rounded(model, chosen, compilation, options, paths, symmetric=is_symmetric):
        name = names[layer.name]
        stored.append((layer, store(editor, layer, blocks, options.bits)))
        noise[name] = round(noise_db(layer.matrix(constant_array(layer.weight)), blocks), 2)
        spec.nodes.append(layer.name)
        spec.values[name] = ValueSpec(
            options.stored, "weight", "block", layer.in_axis, options.block, is_symmetric, options.algorithm
        )
    paths.add({layer.name: lower(editor, layer, constants, options) for layer, constants in stored})
    editor.finish()
    spec.record(plan)
    facts: dict[str, Any] = {"type": options.type, "nodes": spec.nodes, "weight_sqnr_db": noise}
    facts |= {"low_rank": paths.facts} if options.eora else {}
    return PassResult(facts, (*remarks, *paths.left), in_float)


def int4_layers(
    model: ir.Model, options: WeightOnlyOptions, exclude: Collection[str], to_onnxruntime: bool
) -> tuple[list[LinearLayer], list[Remark]]:
    """The layers that get few bits, and why the others do not."""
    block = options.block
    layers, remarks = find_layers(model, SINGLE_OR_HALF, in_bodies=options.in_bodies)
    chosen = []
    for layer in layers:
        reason = "left in float" if layer.name in exclude else why_not_int4(layer, block, to_onnxruntime)
        if reason:
            remarks.append(Remark(layer.name, reason))
        else:
            chosen.append(layer)
    return chosen, remarks


def _clock(compilation: Compilation, options: WeightOnlyOptions) -> Clock | None:
    """Times layers on this machine, where it is the target's and timing is wanted."""
    if not compilation.options.measure or not compilation.target.timed_here:
        return None
    plain = WeightOnlyOptions("rtn", options.block, options.accuracy_level, bits=options.bits)
    return layer_clock(compilation, lambda model: quantize_weights(model, Plan({}), compilation, plain))


def why_not_int4(layer: LinearLayer, block: int, to_onnxruntime: bool) -> str:
    """The reason why a layer cannot have 4 bits, or nothing."""
    if layer.op_type == "Conv":
        return "convolution: no target has blocks of weights there, and a 1x1 as MatMulNBits is slower than in float"
    inputs = layer.shape[layer.in_axis]
    if inputs < MIN_INPUTS:
        return f"{inputs} inputs: too few for weights in blocks"
    if not to_onnxruntime and inputs % block:
        return f"{inputs} inputs are no multiple of the block of {block}"
    return ""


def _scale_all(
    model: ir.Model,
    layers: list[LinearLayer],
    compilation: Compilation,
    options: WeightOnlyOptions,
    *,
    symmetric: bool,
) -> None:
    """AWQ: one input scale per activation, for all the layers that read it."""
    scales = []
    for inputs in walk_inputs(model, layers, compilation):
        matrices = [layer.matrix(layer.array()) for layer in inputs.layers]
        scale = awq_scale(matrices, inputs.moments(), options.block, symmetric=symmetric)
        scales.append((inputs.layers, scale))
    for readers, scale in scales:
        if np.ptp(scale) > 0:
            scale_inputs(model, readers, scale.astype(np.float32))


def _rounded(
    model: ir.Model,
    layers: list[LinearLayer],
    compilation: Compilation,
    options: WeightOnlyOptions,
    paths: Paths,
    *,
    symmetric: bool,
) -> Iterator[tuple[LinearLayer, Blocks]]:
    """The weights in 4 bits, one at a time. What looks at the inputs looks at those that the layers before, as they
    are now, give."""
    if options.algorithm != "gptq" and not options.eora:
        for number, layer in enumerate(layers):
            yield layer, _nearest(layer, options, symmetric=symmetric)
            compilation.progress(options.type, (number + 1) / len(layers))
        return
    spool = Spool(compilation.scratch.folder)
    for inputs in walk_inputs(model, layers, compilation):
        seen, rows = inputs.moments(max(MULTIPLE, options.block)), inputs.places()
        for layer in inputs.layers:
            if options.algorithm == "gptq":
                blocks = _round_by_output(layer, seen, options, symmetric=symmetric)
            else:
                blocks = _nearest(layer, options, symmetric=symmetric)
            dense, now = layer.matrix(layer.array()), blocks.real()
            added = paths.make(layer, dense, now, seen, rows) if options.eora else None
            yield layer, blocks
            if len(layer.weight.uses()) == 1:
                now = now if added is None else now + added
                array = layer.from_matrix(now).astype(layer.dtype.numpy(), copy=False)
                layer.weight.const_value = spool.keep(ir.tensor(array, name=layer.weight.name))


def _nearest(layer: LinearLayer, options: WeightOnlyOptions, *, symmetric: bool) -> Blocks:
    matrix = layer.matrix(constant_array(layer.weight))
    how = round_by_search if options.algorithm == "kquant" else round_to_nearest
    return how(matrix, options.block, options.bits, symmetric=symmetric, stored=matrix.dtype)


def _round_by_output(
    layer: LinearLayer, seen: InputMoments, options: WeightOnlyOptions, *, symmetric: bool
) -> Blocks:
    matrix = layer.matrix(constant_array(layer.weight))
    return Blocks.joined(
        [
            round_by_output(matrix[:, block.columns], block.gram[0], options.block, symmetric=symmetric)
            for block in seen.blocks
        ]
    )


def _store_packed(editor: GraphEditor, layer: LinearLayer, blocks: Blocks, bits: int) -> list[ir.Value]:
    """Numbers, scales and zero points as MatMulNBits wants them."""
    name = layer.weight.name or ""
    outputs, inputs = blocks.levels.shape
    count = blocks.scale.shape[1]
    padded = np.zeros((outputs, count * blocks.size), np.uint8)
    padded[:, :inputs] = blocks.levels
    scale = editor.constant(f"{name}_scale", blocks.scale.reshape(-1).astype(layer.dtype.numpy()))
    if bits == 8:
        whole = editor.constant(f"{name}_int8", padded.reshape(outputs, count, blocks.size))
        return [whole, scale]  # without zero points the kernel takes 128, which symmetric rounding has
    packed = (padded[:, 0::2] | (padded[:, 1::2] << 4)).reshape(outputs, count, blocks.size // 2)
    zeros = np.zeros((outputs, count + count % 2), np.uint8)
    zeros[:, :count] = blocks.zero
    return [
        editor.constant(f"{name}_int4", packed),
        scale,
        editor.constant(f"{name}_zero_point", (zeros[:, 0::2] | (zeros[:, 1::2] << 4)).reshape(-1)),
    ]


def _lower_onnxruntime(
    editor: GraphEditor, layer: LinearLayer, constants: list[ir.Value], options: WeightOnlyOptions
) -> ir.Value:
    """The value that the layer, with its bias, now gives."""
    attributes = {
        "K": layer.shape[layer.in_axis], "N": layer.shape[layer.out_axis], "bits": options.bits,
        "block_size": options.block, "accuracy_level": options.accuracy_level,
    }  # fmt: skip
    bias, result = (
        (layer.bias, layer.node.outputs[0]) if layer.op_type == "Gemm" else trailing_bias(layer.node)
    )
    product = editor.add(
        "MatMulNBits", [layer.input_now, *constants], attributes, base=f"{layer.name}_{options.stored}",
        before=layer.node, domain="com.microsoft", dtype=layer.dtype, like=result,
    )  # fmt: skip
    if bias is not None:
        product = editor.add(
            "Add", [product, bias], base=f"{layer.name}_biased", before=layer.node, dtype=layer.dtype
        )
    editor.stand_in(result, product)
    return product


def _store_blocked(editor: GraphEditor, layer: LinearLayer, blocks: Blocks, bits: int) -> list[ir.Value]:
    """A constant of int4 or int8 in the layout of the weight, with a scale per block of inputs."""
    name = layer.weight.name or ""
    dtype = ml_dtypes.int4 if bits == 4 else np.int8
    levels = (blocks.levels.astype(np.int16) - 2 ** (bits - 1)).astype(dtype)
    scale = blocks.scale.astype(layer.dtype.numpy())
    if layer.out_axis == 1:
        levels, scale = np.ascontiguousarray(levels.T), np.ascontiguousarray(scale.T)
    return [editor.constant(f"{name}_int{bits}", levels), editor.constant(f"{name}_scale", scale)]


def _lower_blocked(
    editor: GraphEditor, layer: LinearLayer, constants: list[ir.Value], options: WeightOnlyOptions
) -> ir.Value:
    """The weight from behind a DequantizeLinear; the value that the layer, with its bias, gives."""
    result = layer.node.outputs[0] if layer.op_type == "Gemm" else trailing_bias(layer.node)[1]
    restored = editor.add(
        "DequantizeLinear", constants, {"axis": layer.in_axis, "block_size": options.block},
        base=f"{layer.weight.name}_restored", dtype=layer.dtype, like=layer.weight,
    )  # fmt: skip
    layer.node.replace_input_with(1, restored)
    return result
