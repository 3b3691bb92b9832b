"""What the outputs of ONNX Runtime's own operators look like: the `shapes` columns of their rows.

Each function gives the shapes of the outputs of one call, in order; IndexError where an operand it needs has no
known shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import onnx
from onnx import shape_inference

from sparsecc.shapes.assignment import dims_of
from sparsecc.shapes.contrib_ops import Call, OutputShapes, Shape

BOOL = onnx.TensorProto.BOOL


def same(call: Call) -> Sequence[Shape]:
    """The shape of the first operand."""
    return [call[0]]


SAME = OutputShapes(same)
QUANTIZED = OutputShapes(same, own={0: onnx.TensorProto.UINT8})


def sampled(call: Call) -> Sequence[Shape]:
    """Batch and channels of the data, space of the grid."""
    return [[*call[0][:2], *call[1][1:-1]]]


def twice(call: Call) -> Sequence[Shape]:
    """The shape of the first operand, for both outputs."""
    return [call[0], call[0]]


def skip_norm(call: Call) -> Sequence[Shape]:
    """The norm, its mean and inverse deviation per row, and the sum it is taken of."""
    statistics = [*call[0][:-1], 1]
    return [call[0], statistics, statistics, call[0]]


def rms_norm(call: Call) -> Sequence[Shape]:
    """The norm, and its inverse deviation over the axes from `axis` on."""
    axis = call.int_("axis", -1) % len(call[0])
    return [call[0], [*call[0][:axis], *(1 for _ in call[0][axis:])]]


def embed_norm(dtype: int) -> OutputShapes:
    """The sum and its norm have the type of operand `dtype`; between them lies the mask, in integers."""

    def of(call: Call) -> Sequence[Shape]:
        whole = [*call[0], call[2][-1]]
        return [whole, call[0][:1], whole]

    return OutputShapes(of, dtype=dtype, own={1: onnx.TensorProto.INT32})


def halved(call: Call) -> Sequence[Shape]:
    """The last axis is half as long."""
    return [[*call[0][:-1], call[0][-1] // 2]]


def fused_matmul(call: Call) -> Sequence[Shape]:
    """A product after optional transposes of the last two axes, or of the first behind the batch."""
    a, b = list(call[0]), list(call[1])
    for shape, side in ((a, "A"), (b, "B")):
        if call.int_(f"transBatch{side}"):
            shape[:-1] = [*shape[1:-1], shape[0]]
        if call.int_(f"trans{side}") and len(shape) > 1:
            shape[-2:] = shape[:-3:-1]
    return [_product(a, b)]


def product(call: Call) -> Sequence[Shape]:
    """(…, m, k) by (…, k, n)."""
    return [_product(call[0], call[1])]


def _product(a: Shape, b: Shape) -> Shape:
    batch_a, batch_b = a[:-2], b[:-2]
    rank = max(len(batch_a), len(batch_b))
    pairs = zip([1] * (rank - len(batch_a)) + batch_a, [1] * (rank - len(batch_b)) + batch_b, strict=True)
    return [*(y if x == 1 else x for x, y in pairs), *a[-2:-1], *(b[-1:] if len(b) > 1 else [])]


def q_gemm_shape(call: Call) -> Sequence[Shape]:
    """A (m, k) by B (k, n), either transposed; B is operand 3."""
    a, b = call[0], call[3]
    return [[a[1] if call.int_("transA") else a[0], b[0] if call.int_("transB") else b[1]]]


def packed(call: Call) -> Sequence[Shape]:
    """(…, K) by N rows of packed weights."""
    return [[*call[0][:-1], call.int_("N")]]


def gathered_blocks(call: Call) -> Sequence[Shape]:
    """The shape of the indices, then the columns of a table: as many as its scales have blocks of."""
    return [[*call[1], call[2][-1] * call.int_("block_size", 128)]]


def packed_attention(past: int, dtype: int = 0) -> OutputShapes:
    """Attention whose Q, K and V come of one product; `past` is the operand that holds the cache."""

    def of(call: Call) -> Sequence[Shape]:
        sizes, heads = call.attributes.get("qkv_hidden_sizes"), call.int_("num_heads", 1)
        width = int(sizes[2]) if sizes else call[1][1] // 3
        result = [*call[0][:-1], width]
        if len(call.proto.output) < 2:
            return [result]
        if call.int_("past_present_share_buffer") and call.has(past):
            return [result, call[past]]
        before = call[past][3] if call.has(past) else 0
        return [result, [2, call[0][0], heads, before + call[0][1], width // heads]]

    return OutputShapes(of, dtype=dtype)


def split_attention(past: int) -> OutputShapes:
    """Attention over Q, K and V apart, or joined in threes or twos; `past` is the operand of the cached keys."""

    def of(call: Call) -> Sequence[Shape]:
        heads = call.int_("num_heads", 1)
        batch, length = call[0][:2]
        width, value, keys = _head_sizes(call, heads)
        keys += call[past][2] if call.has(past) else 0
        return [
            [batch, length, heads * value], [batch, heads, keys, width], [batch, heads, keys, value],
            [batch, heads, length, keys],
        ]  # fmt: skip

    return OutputShapes(of)


def _head_sizes(call: Call, heads: int) -> tuple[int, int, int]:
    """The widths of a head of the keys and of the values, and the number of keys."""
    if len(call[0]) == 5:
        return call[0][4], call[0][4], call[0][1]
    if len(call[1]) == 5:
        return call[1][4], call[1][4], call[1][1]
    if len(call[1]) == 4:
        return call[1][3], call[2][3], call[1][2]
    return call[1][2] // heads, call[2][2] // heads, call[1][1]


def grouped_attention(call: Call) -> Sequence[Shape]:
    """Query heads in runs that share a key head; Q, K and V apart or packed; then both caches, longer than they came
    unless they are those of a sliding window."""
    heads, groups = call.int_("num_heads", 1), call.int_("kv_num_heads", 1)
    batch, length, hidden = call[0]
    width = hidden // heads if call.has(1) else hidden // (heads + 2 * groups)
    keys = length + (call[3][2] if call.has(3) else 0)
    if call.has(3) and call.int_("sliding_window_cache"):
        keys = call[3][2]
    present = [batch, groups, keys, width]
    return [[batch, length, heads * width], present, present]


def q_concat(call: Call) -> Sequence[Shape]:
    """Side by side along `axis`; operands come as (tensor, scale, zero point)."""
    shapes = [call[i] for i in range(2, len(call.shapes), 3)]
    axis = call.int_("axis") % len(shapes[0])
    return [[*shapes[0][:axis], sum(s[axis] for s in shapes), *shapes[0][axis + 1 :]]]


def q_where(call: Call) -> Sequence[Shape]:
    """A broadcast of the condition and both tensors."""
    shapes = (call[0], call[1], call[4])
    rank = max(len(s) for s in shapes)
    padded = [[1] * (rank - len(s)) + s for s in shapes]
    return [[max(column) for column in zip(*padded, strict=True)]]


def q_mean(call: Call) -> Sequence[Shape]:
    """The averaged axes become 1, or vanish."""
    rank = len(call[0])
    axes = {a % rank for a in call.attributes.get("axes", range(rank))}
    keep = call.int_("keepdims", 1)
    return [[1 if i in axes else d for i, d in enumerate(call[0]) if keep or i not in axes]]


def pooled(operator: str, *, nhwc: bool = False) -> OutputShapes:
    """A standard pooling; `channels_last` says whether the channels are the last axis, or `nhwc`."""

    def of(call: Call) -> Sequence[Shape]:
        return [_like_standard(call, operator, [call[0]], nhwc or bool(call.int_("channels_last")))]

    return OutputShapes(of)


def nhwc_conv(call: Call) -> Sequence[Shape]:
    """A convolution over (batch, *space, channels)."""
    return [_like_standard(call, "Conv", [call[0], call[1]], True)]


def q_conv(call: Call) -> Sequence[Shape]:
    """A convolution with its weights in operand 3."""
    return [_like_standard(call, "Conv", [call[0], call[3]], bool(call.int_("channels_last")))]


def causal_conv_state(call: Call) -> Sequence[Shape]:
    """The shape of the data, and the last inputs as state."""
    return [call[0], [*call[0][:2], call[1][-1] - 1]]


def linear_attention_state(call: Call) -> Sequence[Shape]:
    """The result, and a state (width of K, width of V) per key head."""
    heads, groups = call.int_("q_num_heads", 1), call.int_("kv_num_heads", 1)
    batch, length, hidden = call[0]
    value = call[2][2] // groups
    return [[batch, length, heads * value], [batch, groups, hidden // heads, value]]


def windows(call: Call) -> Sequence[Shape]:
    """Windows over `dim`, each a new last axis."""
    axis, size, shape = call.int_("dim", -1) % len(call[0]), call.int_("size", 1), list(call[0])
    shape[axis] = (shape[axis] - size) // call.int_("step", 1) + 1
    return [[*shape, size]]


def q_lstm(call: Call) -> Sequence[Shape]:
    """(time, directions, batch, hidden), and the last state and cell."""
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
    shape = dims_of(found.get("result"))
    if shape is None or prod(shape) < 0:
        raise IndexError(f"{call.proto.op_type} has no known shape")
    return [shape[0], *shape[2:], shape[1]] if channels_last else shape


FUSED_MATMUL = OutputShapes(fused_matmul)
PACKED = OutputShapes(packed)
