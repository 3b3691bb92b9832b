"""Sizes that an operator needs to be equal: what ONNX Runtime refuses to run, also where onnx infers a shape."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import zip_longest

import numpy as np
import onnx_ir as ir

from sparsecc.axes.sizes import DIVIDED, OPAQUE

Pair = tuple[int, int]
Dims = Sequence[list[int] | None]
Data = Sequence[np.ndarray | None]


def unmet(node: ir.Node, dims: Dims, data: Data) -> tuple[int, Pair] | None:
    """The first two sizes of a node's inputs that must be equal and differ, and their place among the pairs that must;
    None where all are equal, or it is not known.

    `dims` and `data` are the shapes and small values of the inputs, None where unknown.
    """
    rule = _DEMANDS.get((node.domain, node.op_type))
    if rule is None:
        return None
    known = OPAQUE // DIVIDED
    demands = enumerate(rule(node, dims, data))
    return next(((i, pair) for i, pair in demands if pair[0] != pair[1] and max(pair) < known), None)


def _aligned(shapes: Sequence[Sequence[int]]) -> Iterator[Pair]:
    """Sizes at the same place from the right; one of 1 is that of the others (numpy's broadcasting)."""
    for column in zip_longest(*map(reversed, shapes), fillvalue=1):
        wanted = next((size for size in column if size != 1), 1)
        yield from ((wanted if size == 1 else size, wanted) for size in column[1:])


def _broadcast(node: ir.Node, dims: Dims, data: Data) -> Iterator[Pair]:
    if (
        "broadcast" not in node.attributes and "axis" not in node.attributes
    ):  # those before opset 7 are written out
        yield from _aligned([shape for shape in dims if shape is not None])


def _matmul(node: ir.Node, dims: Dims, data: Data) -> Iterator[Pair]:
    a, b = dims[0], dims[1]
    if a and b:
        yield a[-1], b[-2] if len(b) > 1 else b[0]
        yield from _aligned([a[:-2], b[:-2]])


def _gemm(node: ir.Node, dims: Dims, data: Data) -> Iterator[Pair]:
    a, b = dims[0], dims[1]
    if a is not None and b is not None and len(a) == len(b) == 2:
        turned = [node.attributes.get_int(name, 0) for name in ("transA", "transB")]
        yield a[0 if turned[0] else 1], b[1 if turned[1] else 0]


def _conv(node: ir.Node, dims: Dims, data: Data) -> Iterator[Pair]:
    """Weights are (out, in/group, *kernel)."""
    x, w = dims[0], dims[1]
    if x is not None and w is not None and len(x) == len(w) >= 3:
        yield x[1], w[1] * node.attributes.get_int("group", 1)


def _conv_transpose(node: ir.Node, dims: Dims, data: Data) -> Iterator[Pair]:
    """Weights are (in, out/group, *kernel)."""
    x, w = dims[0], dims[1]
    if x is not None and w is not None and len(x) == len(w) >= 3:
        yield x[1], w[0]


def _concat(node: ir.Node, dims: Dims, data: Data) -> Iterator[Pair]:
    shapes = [shape for shape in dims if shape is not None]
    axis = node.attributes.get_int("axis", 1)
    for other in shapes[1:]:
        if len(other) == len(shapes[0]):
            away = axis % len(other)
            yield from ((b, a) for i, (a, b) in enumerate(zip(shapes[0], other, strict=True)) if i != away)


def _split(node: ir.Node, dims: Dims, data: Data) -> Iterator[Pair]:
    sizes = data[1] if len(data) > 1 else node.attributes.get_ints("split", None)
    x, axis = dims[0], node.attributes.get_int("axis", 0)
    if x is not None and sizes is not None and -len(x) <= axis < len(x):
        yield x[axis], int(np.sum(sizes))


def _reshape(node: ir.Node, dims: Dims, data: Data) -> Iterator[Pair]:
    x, given = dims[0], data[1] if len(data) > 1 else None
    if x is None or given is None:
        return
    target = [int(size) for size in given.ravel()]
    if not node.attributes.get_int("allowzero", 0):
        target = [x[i] if size == 0 and i < len(x) else size for i, size in enumerate(target)]
    if -1 not in target:
        yield math.prod(x), math.prod(target)


def _expand(node: ir.Node, dims: Dims, data: Data) -> Iterator[Pair]:
    if dims[0] is not None and data[1] is not None:
        yield from _aligned([dims[0], [int(size) for size in data[1].ravel()]])


def _per_channel(node: ir.Node, dims: Dims, data: Data) -> Iterator[Pair]:
    x, scale = dims[0], dims[1]
    if x is not None and len(x) > 1 and scale is not None and len(scale) == 1:
        yield x[1], scale[0]


def _layer_norm(node: ir.Node, dims: Dims, data: Data) -> Iterator[Pair]:
    if dims[0] is not None and dims[1] is not None:
        yield from _aligned([dims[0], dims[1]])


def _recurrent(node: ir.Node, dims: Dims, data: Data) -> Iterator[Pair]:
    """Inputs are (length, batch, width), weights (directions, gates, width)."""
    x, w = dims[0], dims[1]
    if x is not None and w is not None and len(x) == len(w) == 3:
        yield x[2], w[2]


def _einsum(node: ir.Node, dims: Dims, data: Data) -> Iterator[Pair]:
    terms = node.attributes.get_string("equation", "").replace(" ", "").partition("->")[0].split(",")
    sizes: dict[str, int] = {}
    for term, shape in zip(terms, dims, strict=False):
        if shape is not None and len(term) == len(shape):  # no ellipsis
            yield from (
                (size, sizes.setdefault(letter, size)) for letter, size in zip(term, shape, strict=True)
            )


_ALIGNED = """Add And BitwiseAnd BitwiseOr BitwiseXor Div Equal Greater GreaterOrEqual Less LessOrEqual Max Mean Min
Mod Mul Or PRelu Pow Sub Sum Where Xor"""

_DEMANDS: Mapping[tuple[str, str], Callable[[ir.Node, Dims, Data], Iterator[Pair]]] = {
    **{("", name): _broadcast for name in _ALIGNED.split()},
    ("", "BatchNormalization"): _per_channel,
    ("", "Concat"): _concat,
    ("", "Conv"): _conv,
    ("", "ConvTranspose"): _conv_transpose,
    ("", "Einsum"): _einsum,
    ("", "Expand"): _expand,
    ("", "GRU"): _recurrent,
    ("", "Gemm"): _gemm,
    ("", "InstanceNormalization"): _per_channel,
    ("", "LSTM"): _recurrent,
    ("", "LayerNormalization"): _layer_norm,
    ("", "MatMul"): _matmul,
    ("", "MatMulInteger"): _matmul,
    ("", "RMSNormalization"): _layer_norm,
    ("", "RNN"): _recurrent,
    ("", "Reshape"): _reshape,
    ("", "Split"): _split,
    ("com.microsoft", "FusedConv"): _conv,
    ("com.microsoft", "FusedGemm"): _gemm,
    ("com.microsoft", "SkipLayerNormalization"): _broadcast,
    ("com.microsoft", "SkipSimplifiedLayerNormalization"): _broadcast,
}
