"""What operators that onnx cannot infer look like to shape inference.

onnx has no schema for ONNX Runtime's own operators. Those with the shape of a standard operator are inferred
as that stand-in; the others state the shapes of their outputs here, one small function each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import onnx
from onnx import shape_inference

STANDARD = {
    "FusedConv": "Conv", "FusedGemm": "Gemm", "QLinearAdd": "Add", "QLinearMul": "Mul",
    "Trilu": "Trilu", "Pad": "Pad", "Unique": "Unique", "Range": "Range",
}  # fmt: skip
"""Inferred as the standard operator of that name, with the attributes it knows."""

_KNOWN_DOMAINS = frozenset(("", "ai.onnx", "ai.onnx.ml", "ai.onnx.preview", "ai.onnx.preview.training"))

Shape = list[int]
Types = Mapping[str, onnx.TypeProto]


@dataclass
class Call:
    """One node whose outputs are asked for: the shapes of its operands, and its attributes."""

    proto: onnx.NodeProto
    shapes: list[Shape | None]
    attributes: dict[str, Any]

    def __getitem__(self, operand: int) -> Shape:
        shape = self.shapes[operand] if operand < len(self.shapes) else None
        if shape is None:
            raise IndexError(f"operand {operand} of {self.proto.op_type} has no known shape")
        return shape

    def has(self, operand: int) -> bool:
        return operand < len(self.shapes) and self.shapes[operand] is not None

    def int_(self, name: str, default: int = 0) -> int:
        return int(self.attributes.get(name, default))


Outputs = Callable[[Call], Sequence[Shape]]
_OUTPUTS: dict[str, tuple[Outputs, int]] = {}
"""Operator -> (the shapes of its outputs, the operand whose element type they have)."""


def _shapes_of(operators: str, dtype: int = 0) -> Callable[[Outputs], Outputs]:
    def register(function: Outputs) -> Outputs:
        for name in operators.split():
            _OUTPUTS[name] = function, dtype
        return function

    return register


def inference_stand_in(proto: onnx.NodeProto, version: int) -> onnx.NodeProto:
    """The node to infer in place of `proto`: itself when onnx knows it, a standard operator otherwise."""
    if proto.domain in _KNOWN_DOMAINS or proto.op_type not in STANDARD:
        return proto
    return _as_standard(proto, STANDARD[proto.op_type], version)


def _as_standard(proto: onnx.NodeProto, name: str, version: int) -> onnx.NodeProto:
    known = onnx.defs.get_schema(name, version).attributes
    inputs = [proto.input[0], proto.input[3]] if proto.op_type.startswith("QLinear") else list(proto.input)
    if name == "Conv":
        inputs = inputs[:3]
    node = onnx.helper.make_node(name, inputs, proto.output, name=proto.name)
    node.attribute.extend(a for a in proto.attribute if a.name in known)
    return node


def contrib_types(proto: onnx.NodeProto, types: Types) -> dict[str, onnx.TypeProto] | None:
    """The types of the outputs of an operator that onnx does not infer; None where it is not one we know.

    Raises IndexError where an operand it needs has no known shape.
    """
    own = proto.domain == "com.microsoft" or proto.op_type in _STANDARD_WITHOUT_INFERENCE
    if not own or proto.op_type not in _OUTPUTS:
        return None
    function, dtype_operand = _OUTPUTS[proto.op_type]
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in proto.attribute}
    call = Call(proto, [_dims(types.get(name)) for name in proto.input], attributes)
    operand = proto.input[dtype_operand] if dtype_operand < len(proto.input) else proto.input[0]
    dtype = types[operand].tensor_type.elem_type if operand in types else onnx.TensorProto.FLOAT
    found = {}
    for number, (name, shape) in enumerate(zip(proto.output, function(call), strict=False)):
        kind = _OWN_TYPES.get((proto.op_type, number), dtype)
        if name:
            found[name] = onnx.helper.make_tensor_type_proto(kind, shape)
    return found


_STANDARD_WITHOUT_INFERENCE = frozenset(
    ("GroupNormalization", "MeanVarianceNormalization", "SimplifiedLayerNormalization")
)

_OWN_TYPES = {
    ("EmbedLayerNormalization", 1): onnx.TensorProto.INT32,
    ("QEmbedLayerNormalization", 1): onnx.TensorProto.INT32,
    ("BiasDropout", 1): onnx.TensorProto.BOOL,
    ("QuantizeLinear", 0): onnx.TensorProto.UINT8,
}
"""(operator, output) whose element type is not that of an operand."""


def _dims(kind: onnx.TypeProto | None) -> Shape | None:
    if kind is None or not kind.tensor_type.HasField("shape"):
        return None
    return [d.dim_value for d in kind.tensor_type.shape.dim]


@_shapes_of(
    """FastGelu BiasGelu QuickGelu Gelu BiasSoftmax GroupNorm RotaryEmbedding Inverse MoE QMoE ScaledSiLU
    QLinearLeakyRelu QLinearSigmoid QLinearSoftmax Trilu GemmaRotaryEmbedding BiasAdd GroupNormalization
    MeanVarianceNormalization"""
)
@_shapes_of("QuantizeLinear", dtype=2)
@_shapes_of("DequantizeLinear", dtype=1)
def _same_as_first(call: Call) -> Sequence[Shape]:
    return [call[0]]


@_shapes_of("GridSample")
def _grid_sample(call: Call) -> Sequence[Shape]:
    return [[*call[0][:2], *call[1][1:-1]]]


@_shapes_of("BiasDropout SkipGroupNorm")
def _twice_the_first(call: Call) -> Sequence[Shape]:
    return [call[0], call[0]]


@_shapes_of("SkipLayerNormalization SkipSimplifiedLayerNormalization")
def _skip_norm(call: Call) -> Sequence[Shape]:
    statistics = [*call[0][:-1], 1]
    return [call[0], statistics, statistics, call[0]]


@_shapes_of("SimplifiedLayerNormalization")
def _rms_norm(call: Call) -> Sequence[Shape]:
    axis = call.int_("axis", -1) % len(call[0])
    return [call[0], [*call[0][:axis], *(1 for _ in call[0][axis:])]]


@_shapes_of("EmbedLayerNormalization", dtype=2)
@_shapes_of("QEmbedLayerNormalization", dtype=8)
def _embed_norm(call: Call) -> Sequence[Shape]:
    whole = [*call[0], call[2][-1]]
    return [whole, call[0][:1], whole]


@_shapes_of("BiasSplitGelu")
def _split_gelu(call: Call) -> Sequence[Shape]:
    return [[*call[0][:-1], call[0][-1] // 2]]


@_shapes_of("FusedMatMul TransposeMatMul FusedMatMulActivation")
def _fused_matmul(call: Call) -> Sequence[Shape]:
    a, b = list(call[0]), list(call[1])
    for shape, side in ((a, "A"), (b, "B")):
        if call.int_(f"transBatch{side}"):
            shape[:-1] = [*shape[1:-1], shape[0]]
        if call.int_(f"trans{side}") and len(shape) > 1:
            shape[-2:] = shape[:-3:-1]
    return [_product(a, b)]


@_shapes_of("DynamicQuantizeMatMul")
@_shapes_of("MatMulIntegerToFloat", dtype=2)
def _matmul(call: Call) -> Sequence[Shape]:
    return [_product(call[0], call[1])]


def _product(a: Shape, b: Shape) -> Shape:
    batch_a, batch_b = a[:-2], b[:-2]
    rank = max(len(batch_a), len(batch_b))
    pairs = zip([1] * (rank - len(batch_a)) + batch_a, [1] * (rank - len(batch_b)) + batch_b, strict=True)
    return [*(y if x == 1 else x for x, y in pairs), *a[-2:-1], *(b[-1:] if len(b) > 1 else [])]


@_shapes_of("QGemm", dtype=8)
def _q_gemm(call: Call) -> Sequence[Shape]:
    a, b = call[0], call[3]
    return [[a[1] if call.int_("transA") else a[0], b[0] if call.int_("transB") else b[1]]]


@_shapes_of("MatMulNBits MatMulBnb4 MatMulFpQ4")
def _packed_matmul(call: Call) -> Sequence[Shape]:
    return [[*call[0][:-1], call.int_("N")]]


@_shapes_of("Attention DecoderMaskedSelfAttention PackedAttention")
@_shapes_of("QAttention", dtype=3)
def _attention(call: Call) -> Sequence[Shape]:
    sizes, heads = call.attributes.get("qkv_hidden_sizes"), call.int_("num_heads", 1)
    width = int(sizes[2]) if sizes else call[1][1] // 3
    past = 8 if call.proto.op_type == "QAttention" else 4
    result = [*call[0][:-1], width]
    if len(call.proto.output) < 2:
        return [result]
    before = call[past][3] if call.has(past) and not call.int_("past_present_share_buffer") else 0
    present = call[past] if call.int_("past_present_share_buffer") else None
    return [result, present or [2, call[0][0], heads, before + call[0][1], width // heads]]


@_shapes_of("MultiHeadAttention DecoderMaskedMultiHeadAttention")
def _multi_head_attention(call: Call) -> Sequence[Shape]:
    heads = call.int_("num_heads", 1)
    batch, length = call[0][:2]
    past = 6 if call.proto.op_type == "MultiHeadAttention" else 5
    if len(call[0]) == 5:
        width = value = call[0][4]
        keys = length
    elif len(call[1]) == 5:
        width, value, keys = call[1][4], call[1][4], call[1][1]
    elif len(call[1]) == 4:
        width, value, keys = call[1][3], call[2][3], call[1][2]
    else:
        width, value, keys = call[1][2] // heads, call[2][2] // heads, call[1][1]
    keys += call[past][2] if call.has(past) else 0
    return [
        [batch, length, heads * value], [batch, heads, keys, width], [batch, heads, keys, value],
        [batch, heads, length, keys],
    ]  # fmt: skip


@_shapes_of("GroupQueryAttention")
def _group_query_attention(call: Call) -> Sequence[Shape]:
    heads, groups = call.int_("num_heads", 1), call.int_("kv_num_heads", 1)
    batch, length, hidden = call[0]
    width = hidden // heads if call.has(1) else hidden // (heads + 2 * groups)
    keys = length + (call[3][2] if call.has(3) else 0)
    present = [batch, groups, keys, width]
    return [[batch, length, heads * width], present, present]


@_shapes_of("QLinearConcat", dtype=2)
def _q_concat(call: Call) -> Sequence[Shape]:
    shapes = [call[i] for i in range(2, len(call.shapes), 3)]
    axis = call.int_("axis") % len(shapes[0])
    return [[*shapes[0][:axis], sum(s[axis] for s in shapes), *shapes[0][axis + 1 :]]]


@_shapes_of("QLinearWhere", dtype=1)
def _q_where(call: Call) -> Sequence[Shape]:
    shapes = (call[0], call[1], call[4])
    rank = max(len(s) for s in shapes)
    padded = [[1] * (rank - len(s)) + s for s in shapes]
    return [[max(column) for column in zip(*padded, strict=True)]]


@_shapes_of("QLinearReduceMean")
def _q_mean(call: Call) -> Sequence[Shape]:
    rank = len(call[0])
    axes = {a % rank for a in call.attributes.get("axes", range(rank))}
    keep = call.int_("keepdims", 1)
    return [[1 if i in axes else d for i, d in enumerate(call[0]) if keep or i not in axes]]


@_shapes_of("QLinearGlobalAveragePool")
def _q_global_pool(call: Call) -> Sequence[Shape]:
    return [_like_standard(call, "GlobalAveragePool", [call[0]], bool(call.int_("channels_last")))]


@_shapes_of("QLinearAveragePool")
def _q_pool(call: Call) -> Sequence[Shape]:
    return [_like_standard(call, "AveragePool", [call[0]], bool(call.int_("channels_last")))]


@_shapes_of("NhwcMaxPool")
def _nhwc_pool(call: Call) -> Sequence[Shape]:
    return [_like_standard(call, "MaxPool", [call[0]], True)]


@_shapes_of("NhwcConv NhwcFusedConv")
def _nhwc_conv(call: Call) -> Sequence[Shape]:
    return [_like_standard(call, "Conv", [call[0], call[1]], True)]


@_shapes_of("QLinearConv")
def _q_conv(call: Call) -> Sequence[Shape]:
    return [_like_standard(call, "Conv", [call[0], call[3]], bool(call.int_("channels_last")))]


@_shapes_of("CausalConvWithState")
def _causal_conv(call: Call) -> Sequence[Shape]:
    return [call[0], [*call[0][:2], call[1][-1] - 1]]


@_shapes_of("LinearAttention")
def _linear_attention(call: Call) -> Sequence[Shape]:
    heads, groups = call.int_("q_num_heads", 1), call.int_("kv_num_heads", 1)
    batch, length, hidden = call[0]
    value = call[2][2] // groups
    return [[batch, length, heads * value], [batch, groups, hidden // heads, value]]


@_shapes_of("UnfoldTensor")
def _unfold(call: Call) -> Sequence[Shape]:
    axis, size, shape = call.int_("dim", -1) % len(call[0]), call.int_("size", 1), list(call[0])
    shape[axis] = (shape[axis] - size) // call.int_("step", 1) + 1
    return [[*shape, size]]


@_shapes_of("DynamicQuantizeLSTM")
def _q_lstm(call: Call) -> Sequence[Shape]:
    directions, hidden = call[1][0], call[2][1]
    state = [directions, call[0][1], hidden]
    return [[call[0][0], *state], state, state]


def _like_standard(call: Call, operator: str, operands: list[Shape], channels_last: bool) -> Shape:
    """The output shape of a standard operator over NCHW data, given in NHWC where `channels_last`."""
    shapes = [list(s) for s in operands]
    if channels_last:
        shapes[0] = [shapes[0][0], shapes[0][-1], *shapes[0][1:-1]]
    names = [f"operand{i}" for i in range(len(shapes))]
    node = onnx.helper.make_node(operator, names, ["result"])
    schema = onnx.defs.get_schema(operator, 22)
    node.attribute.extend(a for a in call.proto.attribute if a.name in schema.attributes)
    known = {n: onnx.helper.make_tensor_type_proto(1, s) for n, s in zip(names, shapes, strict=True)}
    opsets = [onnx.helper.make_opsetid("", 22)]
    found = shape_inference.infer_node_outputs(schema, node, known, opset_imports=opsets)
    shape = _dims(found.get("result"))
    if shape is None or prod(shape) < 0:
        raise IndexError(f"{call.proto.op_type} has no known shape")
    return [shape[0], *shape[2:], shape[1]] if channels_last else shape
