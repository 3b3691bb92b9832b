"""ONNX convolutions, products, pools, norms and reductions, in torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sparsecc.torch.onnx_ops.call import Call, ints, onnx_op

_CONV: dict[int, Any] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED: dict[int, Any] = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
_MAX: dict[int, Any] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_AVERAGE: dict[int, Any] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


def amounts(
    call: Call, sizes: Sequence[int], kernel: Sequence[int], ceil: bool = False
) -> list[tuple[int, int]]:
    """(before, behind) padding per axis of space, from `pads` or `auto_pad`; `ceil` lets windows overhang."""
    rank = len(kernel)
    strides, dilations = call.get("strides", [1] * rank), call.get("dilations", [1] * rank)
    mode = call.get("auto_pad", "NOTSET")
    if mode in ("NOTSET", ""):
        pads = call.get("pads", [0] * 2 * rank)
        pairs = [(pads[i], pads[i + rank]) for i in range(rank)]
    elif mode == "VALID":
        pairs = [(0, 0)] * rank
    else:
        pairs = []
        for size, width, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
            total = max((-(-size // stride) - 1) * stride + dilation * (width - 1) + 1 - size, 0)
            small = total // 2
            pairs.append((total - small, small) if mode == "SAME_LOWER" else (small, total - small))
    if not ceil:
        return pairs
    spans = [d * (k - 1) + 1 for d, k in zip(dilations, kernel, strict=True)]
    return [
        (a, b + (-(s + a + b - span)) % stride)
        for (a, b), s, span, stride in zip(pairs, sizes, spans, strides, strict=True)
    ]


def _flat(pairs: Sequence[tuple[int, int]]) -> list[int]:
    return [n for pair in reversed(pairs) for n in pair]


@onnx_op("Conv")
def conv(call: Call, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Weights (out, in/group, *kernel)."""
    rank = x.dim() - 2
    pairs = amounts(call, x.shape[2:], weight.shape[2:])
    even = all(a == b for a, b in pairs)
    data = x if even else F.pad(x, _flat(pairs))
    padding = [a for a, _ in pairs] if even else 0
    strides, dilations = call.get("strides", [1] * rank), call.get("dilations", [1] * rank)
    result: Tensor = _CONV[rank](data, weight, bias, strides, padding, dilations, call.get("group", 1))
    return result


@onnx_op("ConvTranspose")
def conv_transpose(call: Call, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Weights (in, out/group, *kernel)."""
    rank = x.dim() - 2
    kernel = weight.shape[2:]
    strides, dilations = call.get("strides", [1] * rank), call.get("dilations", [1] * rank)
    extra = call.get("output_padding", [0] * rank)
    whole = _TRANSPOSED[rank](x, weight, bias, strides, 0, extra, call.get("group", 1), dilations)
    wanted = call.get("output_shape")
    if wanted is not None:
        cuts = [max(whole.shape[2 + i] - w, 0) for i, w in enumerate(wanted[-rank:])]
        pairs = [(c // 2, c - c // 2) for c in cuts]
    else:
        pairs = amounts(call, x.shape[2:], kernel)
    result: Tensor = F.pad(whole, [-n for n in _flat(pairs)])
    return result


@onnx_op("MaxPool")
def max_pool(call: Call, x: Tensor) -> Any:
    """Windows over space; positions where asked for."""
    kernel = call.get("kernel_shape")
    rank = len(kernel)
    pairs = amounts(call, x.shape[2:], kernel, bool(call.get("ceil_mode", 0)))
    lowest = float("-inf") if x.is_floating_point() else torch.iinfo(x.dtype).min
    data = F.pad(x, _flat(pairs), value=lowest) if any(n for p in pairs for n in p) else x
    strides, dilations = call.get("strides", [1] * rank), call.get("dilations", [1] * rank)
    return _MAX[rank](data, kernel, strides, 0, dilations, False, call.outputs > 1)


@onnx_op("AveragePool")
def average_pool(call: Call, x: Tensor) -> Tensor:
    """Windows over space; padding counts where the node says so."""
    kernel = call.get("kernel_shape")
    rank = len(kernel)
    strides = call.get("strides", [1] * rank)
    plain = amounts(call, x.shape[2:], kernel)
    over = amounts(call, x.shape[2:], kernel, bool(call.get("ceil_mode", 0)))
    ones = torch.ones_like(x[:1, :1])
    if call.get("count_include_pad", 0):
        ones = F.pad(ones, _flat(plain), value=1.0)
        ones = F.pad(ones, _flat([(0, b - q) for (_, b), (_, q) in zip(over, plain, strict=True)]))
    else:
        ones = F.pad(ones, _flat(over))
    total: Tensor = _AVERAGE[rank](F.pad(x, _flat(over)), kernel, strides)
    counts: Tensor = _AVERAGE[rank](ones, kernel, strides)
    return total / counts


@onnx_op("GlobalAveragePool GlobalMaxPool")
def global_pool(call: Call, x: Tensor) -> Tensor:
    """All of space becomes one slot."""
    dims = list(range(2, x.dim()))
    return x.mean(dims, keepdim=True) if call.op == "GlobalAveragePool" else x.amax(dims, keepdim=True)


@onnx_op("MatMul")
def matmul(call: Call, a: Tensor, b: Tensor) -> Tensor:
    """(…, m, k) by (…, k, n)."""
    return torch.matmul(a, b)


@onnx_op("Gemm")
def gemm(call: Call, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    """alpha*A·B + beta*C, A and B transposed where asked."""
    left = a.T if call.get("transA", 0) else a
    right = b.T if call.get("transB", 0) else b
    product = left @ right
    product = product if call.get("alpha", 1.0) == 1.0 else product * float(call.get("alpha"))
    if c is None:
        return product
    return product + (c if call.get("beta", 1.0) == 1.0 else c * call.get("beta"))


@onnx_op("Einsum")
def einsum(call: Call, *operands: Tensor) -> Tensor:
    """Letters are axes."""
    return torch.einsum(call.get("equation"), *operands)


@onnx_op("BatchNormalization")
def batch_norm(call: Call, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """With the statistics of the file."""
    return F.batch_norm(x, mean, variance, scale, bias, False, 0.0, call.get("epsilon", 1e-5))


@onnx_op("InstanceNormalization")
def instance_norm(call: Call, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Each channel of each item by its own statistics."""
    return F.instance_norm(x, weight=scale, bias=bias, eps=call.get("epsilon", 1e-5))


@onnx_op("LayerNormalization")
def layer_norm(call: Call, x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Any:
    """The axes from `axis` on are normalised over."""
    axis = call.get("axis", -1) % x.dim()
    result = F.layer_norm(x, x.shape[axis:], scale.expand(x.shape[axis:]), None, call.get("epsilon", 1e-5))
    result = result if bias is None else result + bias
    return result if call.outputs == 1 else (result, *[None] * (call.outputs - 1))


@onnx_op("RMSNormalization SimplifiedLayerNormalization")
def rms_norm(call: Call, x: Tensor, scale: Tensor) -> Tensor:
    """Divided by the root mean square over the axes from `axis` on."""
    axis = call.get("axis", -1) % x.dim()
    return F.rms_norm(x, x.shape[axis:], eps=call.get("epsilon", 1e-5)) * scale


@onnx_op("GroupNormalization")
def group_norm(call: Call, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Groups of channels; before opset 21 scale and bias are per group."""
    groups = call.get("num_groups")
    times = x.shape[1] // scale.shape[0]
    scale, bias = scale.repeat_interleave(times), bias.repeat_interleave(times)
    return F.group_norm(x, groups, scale, bias, call.get("epsilon", 1e-5))


@onnx_op("LpNormalization")
def lp_norm(call: Call, x: Tensor) -> Tensor:
    """Divided by the norm along one axis."""
    axis, power = call.get("axis", -1), call.get("p", 2)
    return torch.div(x, torch.linalg.vector_norm(x, power, axis, keepdim=True))


@onnx_op("LRN")
def local_response(call: Call, x: Tensor) -> Tensor:
    """Neighbouring channels are normalised together."""
    return F.local_response_norm(
        x, call.get("size"), call.get("alpha", 1e-4), call.get("beta", 0.75), call.get("bias", 1.0)
    )


@onnx_op("Softmax LogSoftmax")
def softmax(call: Call, x: Tensor) -> Tensor:
    """Over one axis; before opset 13 over all axes from it on."""
    function: Any = F.softmax if call.op == "Softmax" else F.log_softmax
    if call.version >= 13:
        result: Tensor = function(x, call.get("axis", -1))
        return result
    axis = call.get("axis", 1) % x.dim()
    flat: Tensor = function(x.reshape(math.prod(x.shape[:axis]), -1), 1)
    return flat.reshape(x.shape)


_REDUCE: dict[str, Any] = {
    "ReduceSum": lambda x, d, k: x.sum(d, keepdim=k),
    "ReduceMean": lambda x, d, k: x.mean(d, keepdim=k),
    "ReduceMax": lambda x, d, k: x.amax(d, keepdim=k),
    "ReduceMin": lambda x, d, k: x.amin(d, keepdim=k),
    "ReduceL1": lambda x, d, k: x.abs().sum(d, keepdim=k),
    "ReduceL2": lambda x, d, k: x.square().sum(d, keepdim=k).sqrt(),
    "ReduceSumSquare": lambda x, d, k: x.square().sum(d, keepdim=k),
    "ReduceLogSum": lambda x, d, k: x.sum(d, keepdim=k).log(),
    "ReduceLogSumExp": lambda x, d, k: x.logsumexp(d, keepdim=k),
}


def reduce(call: Call, x: Tensor, given: Tensor | None = None) -> Tensor:
    """Over the named axes, or all of them."""
    axes = call.axes(given)
    if not axes:
        if axes == [] and call.get("noop_with_empty_axes", 0):
            return x
        axes = list(range(x.dim()))
    found: Tensor = _REDUCE[call.op](x, axes, bool(call.get("keepdims", 1)))
    return found


onnx_op(" ".join(_REDUCE))(reduce)


@onnx_op("ReduceProd")
def reduce_product(call: Call, x: Tensor, given: Tensor | None = None) -> Tensor:
    """The product along axes, one after the other."""
    for axis in sorted((a % x.dim() for a in call.axes(given) or range(x.dim())), reverse=True):
        x = x.prod(axis, keepdim=bool(call.get("keepdims", 1)))
    return x


@onnx_op("Resize Upsample")
def resize(
    call: Call,
    x: Tensor,
    roi: Tensor | None = None,
    scales: Tensor | None = None,
    sizes: Tensor | None = None,
) -> Tensor:
    """Nearest by exact positions, linear and cubic by torch's own interpolation."""
    scales = roi if call.op == "Upsample" else scales
    if sizes is not None and sizes.numel():
        target = ints(sizes)[-(x.dim() - 2) :]
    else:
        factors = call.get("scales") if scales is None else scales.reshape(-1).tolist()
        target = [math.floor(s * f) for s, f in zip(x.shape[2:], factors[-(x.dim() - 2) :], strict=True)]
    mode = call.get("mode", "nearest")
    where = call.get("coordinate_transformation_mode", "half_pixel" if call.op == "Resize" else "asymmetric")
    if mode == "nearest":
        return _nearest(call, x, target, where)
    name = {"linear": {1: "linear", 2: "bilinear", 3: "trilinear"}[x.dim() - 2], "cubic": "bicubic"}[mode]
    return F.interpolate(x, size=target, mode=name, align_corners=where == "align_corners")


def _nearest(call: Call, x: Tensor, target: Sequence[int], where: str) -> Tensor:
    rounding = call.get("nearest_mode", "round_prefer_floor" if call.op == "Resize" else "floor")
    for axis, size in enumerate(target, start=2):
        old = x.shape[axis]
        if old == size:
            continue
        place = torch.arange(size, dtype=torch.float64, device=x.device)
        if where == "align_corners":
            place = place * (old - 1) / max(size - 1, 1)
        elif where == "asymmetric":
            place = place * old / size
        else:
            place = (place + 0.5) * old / size - 0.5
        found = {"floor": torch.floor, "ceil": torch.ceil}.get(rounding, lambda p: torch.ceil(p - 0.5))(place)
        x = x.index_select(axis, found.clamp(0, old - 1).long())
    return x


@onnx_op("GridSample")
def grid_sample(call: Call, x: Tensor, grid: Tensor) -> Tensor:
    """Space is sampled at the points of the grid."""
    mode = {"linear": "bilinear", "cubic": "bicubic"}.get(
        call.get("mode", "bilinear"), call.get("mode", "bilinear")
    )
    return F.grid_sample(x, grid, mode, call.get("padding_mode", "zeros"), bool(call.get("align_corners", 0)))
