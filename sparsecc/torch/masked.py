"""What the dense module computes once the removed slots are without effect: the truth a pruned one must meet.

The exported graph runs with its dense weights; wherever an operator sums, averages or normalises over an axis
that lost slots, the removed slots are left out of it by other means than removal (zeros, counts, weights).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, fx

from sparsecc.axes.algebra import Axis, Keep, atoms_of, mask
from sparsecc.graph.analysis import Analysis
from sparsecc.rules.site import Reduction
from sparsecc.torch.program.exported import Program

Masks = dict[int, Tensor]
"""Axis position -> which of its slots stay."""


def masked_outputs(
    program: Program, analysis: Analysis, keep: Keep, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Any:
    """The outputs of the dense module with the removed slots without effect, structured as its own."""
    module = program.graph_module
    interpreter = _Masked(program, analysis, keep)
    with torch.no_grad():
        flat = module.graph.process_inputs(*args, **dict(kwargs)) if _has_tree(module) else args
        return module.graph.process_outputs(interpreter.run(*flat, enable_io_processing=False))


def _has_tree(module: fx.GraphModule) -> bool:
    return hasattr(module.graph, "process_inputs")


class _Masked(fx.Interpreter):
    """Runs the dense graph; calls with masked reductions go through `TREATED`, others run as they are."""

    def __init__(self, program: Program, analysis: Analysis, keep: Keep) -> None:
        super().__init__(program.graph_module)
        self.program = program
        self.analysis = analysis
        self.keep = keep
        self.reductions: dict[fx.Node, list[Reduction]] = {}
        for reduction in analysis.record.reductions:
            call = program.call[reduction.node]
            if self._masks(reduction):
                self.reductions.setdefault(call, []).append(reduction)

    def run_node(self, n: fx.Node) -> Any:
        found = self.reductions.get(n)
        if found is None:
            return super().run_node(n)
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        masks = {r.operand: self._masks(r) for r in found}
        kind = found[0].kind
        if kind == "sum":
            return n.target(*_zeroed(self.program, n, args, kwargs, masks), **kwargs)  # type: ignore[operator]
        treat = TREATED[kind]
        return treat(n, args, kwargs, masks[0])

    def _masks(self, reduction: Reduction) -> Masks:
        axes = _axes(self.analysis, reduction.node, reduction.operand)
        found = {}
        for position in reduction.positions:
            slots = _mask(axes[position], self.keep)
            if slots is not None and not slots.all():
                found[position] = torch.from_numpy(slots)
        return found


def _axes(analysis: Analysis, node: ir.Node, operand: int) -> list[Axis]:
    if (node, operand) in analysis.record.uses:
        return analysis.record.uses[node, operand]
    value = node.inputs[operand]
    assert value is not None
    return analysis.record.axes[value]


def _mask(axis: Axis, keep: Keep) -> np.ndarray | None:
    return mask(axis, keep) if any(a in keep for a in atoms_of(axis)) else None


def _zeroed(
    program: Program,
    call: fx.Node,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    masks: Mapping[int, Masks],
) -> tuple[Any, ...]:
    """The positional arguments with the masked slots of each operand at zero."""
    number = 0

    def walk(shown: Any, value: Any) -> Any:
        nonlocal number
        if isinstance(shown, fx.Node):
            count = len(program.of.get(shown, ()))
            chosen = masks.get(number)
            number += count
            return fill(value, chosen, 0.0) if chosen else value
        if isinstance(shown, list | tuple):
            return type(shown)(walk(s, v) for s, v in zip(shown, value, strict=True))
        return value

    del kwargs
    return tuple(walk(shown, value) for shown, value in zip(call.args, args, strict=True))


def fill(tensor: Tensor, masks: Masks, value: float) -> Tensor:
    """The tensor with every removed slot at `value`."""
    for position, stays in masks.items():
        gone = torch.nonzero(~stays).ravel().to(tensor.device)
        tensor = tensor.index_fill(position, gone, value)
    return tensor


def _weights(tensor: Tensor, masks: Masks) -> Tensor:
    """Ones where a slot stays and zeros where not, broadcastable to the tensor."""
    weights = torch.ones([1] * tensor.dim(), dtype=tensor.dtype, device=tensor.device)
    for position, stays in masks.items():
        shape = [1] * tensor.dim()
        shape[position] = len(stays)
        weights = weights * stays.to(tensor.dtype).reshape(shape).to(tensor.device)
    return weights


def _mean(call: fx.Node, args: tuple[Any, ...], kwargs: Mapping[str, Any], masks: Masks) -> Any:
    scale = 1.0
    for stays in masks.values():
        scale *= len(stays) / int(stays.sum())
    return call.target(fill(args[0], masks, 0.0), *args[1:], **kwargs) * scale  # type: ignore[operator]


def _extreme(value: float) -> Callable[..., Any]:
    def run(call: fx.Node, args: tuple[Any, ...], kwargs: Mapping[str, Any], masks: Masks) -> Any:
        return call.target(fill(args[0], masks, value), *args[1:], **kwargs)  # type: ignore[operator]

    return run


def _moments(data: Tensor, weights: Tensor, dims: list[int], centre: bool) -> tuple[Tensor, Tensor]:
    """(mean, mean square) over `dims` of the slots that stay; deviations from the mean where `centre`."""
    counts = weights.expand_as(data).sum(dims, keepdim=True)
    mean = (data * weights).sum(dims, keepdim=True) / counts if centre else torch.zeros(1)
    square = (((data - mean) ** 2) * weights).sum(dims, keepdim=True) / counts
    return mean, square


def _norm(call: fx.Node, args: tuple[Any, ...], kwargs: Mapping[str, Any], masks: Masks) -> Any:
    data, shape = args[0], args[1]
    given = {
        **dict(zip(("input", "normalized_shape", "weight", "bias", "eps"), args, strict=False)),
        **kwargs,
    }
    root = "rms" in str(call.target)
    if root and len(args) > 3:
        given["eps"] = args[3]
    bias = None if root else given.get("bias")
    eps = given.get("eps")
    mean, square = _moments(data, _weights(data, masks), list(range(-len(shape), 0)), not root)
    result = (data - mean) * torch.rsqrt(square + (torch.finfo(data.dtype).eps if eps is None else eps))
    return _affine(result, given.get("weight"), bias)


def _affine(data: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    data = data if weight is None else data * weight
    return data if bias is None else data + bias


def _group_norm(call: fx.Node, args: tuple[Any, ...], kwargs: Mapping[str, Any], masks: Masks) -> Tensor:
    names = ("input", "num_groups", "weight", "bias", "eps")
    given = {"eps": 1e-5, **dict(zip(names, args, strict=False)), **kwargs}
    data, groups = given["input"], given["num_groups"]
    grouped = data.reshape(len(data), groups, -1)
    weights = _weights(data, masks).expand_as(data).reshape(len(data), groups, -1)
    counts = weights.sum(-1, keepdim=True).clamp(min=1)
    mean = (grouped * weights).sum(-1, keepdim=True) / counts
    square = ((grouped - mean) ** 2 * weights).sum(-1, keepdim=True) / counts
    result = ((grouped - mean) * torch.rsqrt(square + given["eps"])).reshape(data.shape)
    shape = [1, -1, *(1 for _ in data.shape[2:])]
    weight, bias = given.get("weight"), given.get("bias")
    return _affine(
        result,
        None if weight is None else weight.reshape(shape),
        None if bias is None else bias.reshape(shape),
    )


def _statistics(call: fx.Node, args: tuple[Any, ...], kwargs: Mapping[str, Any], masks: Masks) -> Tensor:
    """batch_norm in training and instance_norm: statistics over space, and of a batch norm over the batch too.

    Their arguments are (input, weight, bias, mean, variance, whether to use the input's statistics, momentum, eps).
    """
    data, weight, bias = args[:3]
    dims = [*([0] if "batch_norm" in str(call.target) else []), *range(2, data.dim())]
    mean, square = _moments(data, _weights(data, masks), dims, True)
    shape = [1, -1, *(1 for _ in data.shape[2:])]
    weight, bias = (None if v is None else v.reshape(shape) for v in (weight, bias))
    return _affine((data - mean) * torch.rsqrt(square + args[7]), weight, bias)


TREATED: dict[str, Callable[..., Any]] = {
    "mean": _mean,
    "max": _extreme(float("-inf")),
    "min": _extreme(float("inf")),
    "layernorm": _norm,
    "rmsnorm": _norm,
    "groupnorm": _group_norm,
    "instancenorm": _statistics,
}
"""Kind of reduction -> how to leave the removed slots out of it."""


def tensors_of(value: Any) -> list[Tensor]:
    """The tensors of nested outputs (tuples, lists, dicts), in order."""
    leaves, _ = torch.utils._pytree.tree_flatten(value)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


def difference(found: Any, wanted: Any) -> float:
    """The largest difference of two outputs, relative to the largest value; infinite where shapes differ, or numbers
    from none. The same infinity (a masked score) is no difference."""
    a, b = tensors_of(found), tensors_of(wanted)
    if len(a) != len(b) or any(x.shape != y.shape for x, y in zip(a, b, strict=True)):
        return float("inf")
    worst = 0.0
    for x, y in zip(a, b, strict=True):
        if not y.numel():
            continue
        x, y = x.double(), y.double()
        scale = max(1.0, float(y.abs().masked_fill(~y.isfinite(), 0.0).max()))
        gap = float((x - y).abs().masked_fill(x == y, 0.0).max()) / scale
        worst = max(worst, gap) if gap == gap else float("inf")
    return worst
