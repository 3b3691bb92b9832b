"""ONNX operators that rearrange or pick slots, in torch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sparsecc.torch.onnx_ops.call import Call, ints, onnx_op


@onnx_op("Reshape")
def reshape(call: Call, x: Tensor, target: Tensor) -> Tensor:
    """0 copies the size of the input (unless allowzero), -1 is what is left."""
    keep = not call.get("allowzero", 0)
    return x.reshape([x.shape[i] if s == 0 and keep else s for i, s in enumerate(ints(target))])


@onnx_op("Flatten")
def flatten(call: Call, x: Tensor) -> Tensor:
    """Two products: the axes before `axis`, and the rest."""
    axis = call.get("axis", 1)
    axis = axis + x.dim() if axis < 0 else axis
    rows = 1
    for size in x.shape[:axis]:
        rows *= size
    return x.reshape(rows, -1)


@onnx_op("Transpose")
def transpose(call: Call, x: Tensor) -> Tensor:
    """Another order of the axes; reversed by default."""
    return x.permute(call.get("perm") or list(range(x.dim()))[::-1])


@onnx_op("Squeeze")
def squeeze(call: Call, x: Tensor, given: Tensor | None = None) -> Tensor:
    """Axes of size 1 vanish."""
    axes = call.axes(given)
    return x.squeeze() if axes is None else x.squeeze(tuple(axes))


@onnx_op("Unsqueeze")
def unsqueeze(call: Call, x: Tensor, given: Tensor | None = None) -> Tensor:
    """New axes of size 1, counted in the result."""
    axes = call.axes(given) or []
    for axis in sorted(a % (x.dim() + len(axes)) for a in axes):
        x = x.unsqueeze(axis)
    return x


@onnx_op("Expand")
def expand(call: Call, x: Tensor, target: Tensor) -> Tensor:
    """Broadcast both ways."""
    return x.expand(torch.broadcast_shapes(x.shape, tuple(ints(target))))


@onnx_op("Tile")
def tile(call: Call, x: Tensor, repeats: Tensor) -> Tensor:
    """Whole copies along each axis."""
    return x.repeat(ints(repeats))


@onnx_op("Shape")
def shape(call: Call, x: Tensor) -> Tensor:
    """The sizes, or a run of them."""
    return torch.tensor(list(x.shape)[call.get("start", 0) : call.get("end")], dtype=torch.int64)


@onnx_op("Size")
def size(call: Call, x: Tensor) -> Tensor:
    """The number of elements."""
    return torch.tensor(x.numel())


@onnx_op("ConstantOfShape")
def constant_of_shape(call: Call, target: Tensor) -> Tensor:
    """One value everywhere; 0.0 by default."""
    value = call.get("value")
    filler = torch.zeros(1) if value is None else torch.as_tensor(value).reshape(-1)
    return filler.to(target.device).expand(ints(target)) if ints(target) else filler[0]


@onnx_op("Constant")
def constant(call: Call) -> Tensor:
    """A value that stands in the node."""
    found = next(iter(call.attributes.values()))
    return torch.as_tensor(found)


@onnx_op("Range")
def arange(call: Call, start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    """start, start+delta, … below limit."""
    return torch.arange(start.item(), limit.item(), delta.item(), dtype=start.dtype, device=start.device)


@onnx_op("Concat")
def concat(call: Call, *operands: Tensor) -> Tensor:
    """Side by side; shape arithmetic on the CPU follows the first operand's device."""
    return torch.cat([o.to(operands[0].device) for o in operands], call.get("axis", 0))


@onnx_op("Split")
def split(call: Call, x: Tensor, given: Tensor | None = None) -> tuple[Tensor, ...]:
    """Consecutive pieces; equal ones where no sizes are given."""
    axis = call.get("axis", 0)
    sizes = call.axes(given, "split")
    if sizes is None:
        width = -(-x.shape[axis] // call.outputs)
        sizes = [min(width, x.shape[axis] - i * width) for i in range(call.outputs)]
    return tuple(x.split(sizes, axis))


@onnx_op("Slice")
def slice_(
    call: Call,
    x: Tensor,
    starts: Tensor | None = None,
    ends: Tensor | None = None,
    axes: Tensor | None = None,
    steps: Tensor | None = None,
) -> Tensor:
    """Bounds are attributes before opset 10. Negative steps go through an index."""
    first, last = call.axes(starts, "starts") or [], call.axes(ends, "ends") or []
    chosen = call.axes(axes) or list(range(len(first)))
    strides = [1] * len(first) if steps is None else ints(steps)
    for axis, start, end, step in zip(chosen, first, last, strides, strict=True):
        begin, stop, stride = slice(start, end, step).indices(x.shape[axis])
        if stride > 0:
            index = [slice(None)] * x.dim()
            index[axis] = slice(begin, max(stop, begin), stride)
            x = x[tuple(index)]
        else:
            x = x.index_select(axis, torch.tensor(list(range(begin, stop, stride)), device=x.device))
    return x


@onnx_op("Gather")
def gather(call: Call, x: Tensor, index: Tensor) -> Tensor:
    """Slots of one axis by number, whatever the rank of the index."""
    axis = call.get("axis", 0) % x.dim()
    index = index.to(x.device).long()
    flat = torch.where(index < 0, index + x.shape[axis], index).reshape(-1)
    return x.index_select(axis, flat).reshape([*x.shape[:axis], *index.shape, *x.shape[axis + 1 :]])


@onnx_op("GatherElements")
def gather_elements(call: Call, x: Tensor, index: Tensor) -> Tensor:
    """One number per element."""
    axis = call.get("axis", 0)
    index = index.long()
    return torch.gather(x, axis, torch.where(index < 0, index + x.shape[axis], index))


@onnx_op("GatherND")
def gather_nd(call: Call, x: Tensor, index: Tensor) -> Tensor:
    """Tuples of numbers along the last axis of the index."""
    if call.get("batch_dims", 0):
        rows = [gather_nd(_unbatched(call), a, b) for a, b in zip(x, index, strict=True)]
        return torch.stack([r for r in rows if isinstance(r, Tensor)])
    return x[tuple(index.long().to(x.device).unbind(-1))]


def _unbatched(call: Call) -> Call:
    attributes = {**call.attributes, "batch_dims": call.get("batch_dims") - 1}
    return Call(call.op, call.name, attributes, call.outputs, call.version)


@onnx_op("ScatterND")
def scatter_nd(call: Call, x: Tensor, index: Tensor, updates: Tensor) -> Tensor:
    """Written (or added) at tuples of numbers."""
    place = tuple(index.long().unbind(-1))
    return x.clone().index_put(place, updates, accumulate=call.get("reduction", "none") == "add")


@onnx_op("ScatterElements Scatter")
def scatter_elements(call: Call, x: Tensor, index: Tensor, updates: Tensor) -> Tensor:
    """One number per element, written or added."""
    axis, index = call.get("axis", 0), index.long()
    index = torch.where(index < 0, index + x.shape[axis], index)
    add = call.get("reduction", "none") == "add"
    return x.scatter_add(axis, index, updates) if add else x.scatter(axis, index, updates)


@onnx_op("Pad")
def pad(
    call: Call,
    x: Tensor,
    given: Tensor | None = None,
    value: Tensor | None = None,
    axes: Tensor | None = None,
) -> Tensor:
    """Amounts before each axis, then behind each; negative ones cut."""
    amounts = call.axes(given, "pads") or []
    chosen = [a % x.dim() for a in ints(axes)] if axes is not None else list(range(x.dim()))
    pairs = dict(zip(chosen, zip(amounts[: len(chosen)], amounts[len(chosen) :], strict=True), strict=True))
    flat = [n for axis in range(x.dim())[::-1] for n in pairs.get(axis, (0, 0))]
    mode = call.get("mode", "constant")
    if mode == "constant":
        return F.pad(x, flat, value=call.get("value", 0.0) if value is None else float(value))
    while flat and flat[-2:] == [0, 0]:
        flat = flat[:-2]
    return F.pad(x, flat, mode={"reflect": "reflect", "edge": "replicate", "wrap": "circular"}[mode])


@onnx_op("DepthToSpace")
def depth_to_space(call: Call, x: Tensor) -> Tensor:
    """Channels are block*block*C (DCR) or C*block*block (CRD)."""
    block = call.get("blocksize")
    n, c, h, w = x.shape
    depth = c // block**2
    if call.get("mode", "DCR") == "CRD":
        return F.pixel_shuffle(x, block)
    return (
        x.reshape(n, block, block, depth, h, w)
        .permute(0, 3, 4, 1, 5, 2)
        .reshape(n, depth, h * block, w * block)
    )


@onnx_op("SpaceToDepth")
def space_to_depth(call: Call, x: Tensor) -> Tensor:
    """Channels become block*block*C."""
    block = call.get("blocksize")
    n, c, h, w = x.shape
    cut = x.reshape(n, c, h // block, block, w // block, block).permute(0, 3, 5, 1, 2, 4)
    return cut.reshape(n, c * block * block, h // block, w // block)


@onnx_op("Trilu")
def triangle(call: Call, x: Tensor, k: Tensor | None = None) -> Tensor:
    """The upper or lower triangle."""
    diagonal = 0 if k is None else int(k)
    return torch.triu(x, diagonal) if call.get("upper", 1) else torch.tril(x, diagonal)


@onnx_op("OneHot")
def one_hot(call: Call, index: Tensor, depth: Tensor, values: Tensor) -> Tensor:
    """off and on values along a new axis."""
    count = int(depth)
    hot = F.one_hot(index.long() % count, count).to(values.dtype) * (values[1] - values[0]) + values[0]
    return hot.movedim(-1, call.get("axis", -1))


@onnx_op("NonZero")
def non_zero(call: Call, x: Tensor) -> Tensor:
    """Positions, one column each."""
    return torch.nonzero(x).T


@onnx_op("TopK")
def top_k(call: Call, x: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """Values and positions."""
    found = torch.topk(
        x, int(k), call.get("axis", -1), bool(call.get("largest", 1)), bool(call.get("sorted", 1))
    )
    return found.values, found.indices


@onnx_op("ArgMax ArgMin")
def extreme(call: Call, x: Tensor) -> Tensor:
    """The position along one axis."""
    function: Any = torch.argmax if call.op == "ArgMax" else torch.argmin
    found: Tensor = function(x, dim=call.get("axis", 0), keepdim=bool(call.get("keepdims", 1)))
    return found


@onnx_op("CumSum")
def cumsum(call: Call, x: Tensor, axis: Tensor) -> Tensor:
    """Running sums, forwards or backwards, with or without the own slot."""
    place = int(axis)
    data = x.flip(place) if call.get("reverse", 0) else x
    total = data.cumsum(place, dtype=x.dtype)
    total = total - data if call.get("exclusive", 0) else total
    return total.flip(place) if call.get("reverse", 0) else total
