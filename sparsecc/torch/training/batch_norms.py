"""Batch norms that an export folded away, put back while a model is trained and folded again at its end.

A convolution with a bias gets a norm behind it whose statistics are those of its output on some inputs and whose
scale and shift undo them: nothing changes until it is trained. In training it normalises by the batch, which
makes deep networks learn several times faster; folded, the file has the nodes that it had.
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir
import torch
from torch import Tensor, nn

from sparsecc.torch.onnx_ops.module import BatchNorm, OnnxModule
from sparsecc.torch.training.samples import Feed

LEAST = 16
"""Samples in a batch below which its statistics say too little."""
_NORMS: dict[int, type[BatchNorm]] = {3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}


@torch.no_grad()
def put_back(module: OnnxModule, feeds: Iterable[Feed]) -> int:
    """Put norms behind the convolutions that have a bias of their own; how many. The outputs stay as they are."""
    places = {node.outputs[0].name or "": node for node in module.nodes if _has_own_bias(module, node)}
    wanted, module.features = module.features, tuple(places)
    seen = _moments(module, feeds)
    module.features = wanted
    for name, (mean, square, rank) in seen.items():
        norm = _NORMS[rank](len(mean)).to(mean.device)
        variance = (square - mean * mean).clamp(min=0)
        for tensor, value in zip(
            (norm.running_mean, norm.running_var, norm.weight, norm.bias),
            (mean, variance, (variance + norm.eps).sqrt(), mean),
            strict=True,
        ):
            assert tensor is not None
            tensor.copy_(value)
        module.put_behind(places[name], norm)
    return len(seen)


@torch.no_grad()
def fold(module: OnnxModule) -> None:
    """Take the norms away: each convolution does what it did together with its norm outside of training."""
    for node, norm in module.taken_away():
        assert norm.running_mean is not None
        assert norm.running_var is not None
        weight, bias = (module.named[v.name or ""] for v in node.inputs[1:3] if v is not None)
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        weight.mul_(scale.reshape(-1, *[1] * (weight.dim() - 1)))
        bias.copy_((bias - norm.running_mean) * scale + norm.bias)


def _has_own_bias(module: OnnxModule, node: ir.Node) -> bool:
    operands = node.inputs[1:3]
    return (
        node.op_type == "Conv"
        and len(operands) == 2
        and all(v is not None and v.name in module.named and len(v.uses()) == 1 for v in operands)
        and not node.outputs[0].is_graph_output()
    )


def _moments(module: OnnxModule, feeds: Iterable[Feed]) -> dict[str, tuple[Tensor, Tensor, int]]:
    """Mean and mean square per channel of the module's features, and their rank; those of other ranks left out."""
    found: dict[str, tuple[Tensor, Tensor, int]] = {}
    count = 0
    for feed in feeds:
        count += 1
        for name, value in module(feed).items():
            if name not in module.features or value.dim() not in _NORMS:
                continue
            others = [axis for axis in range(value.dim()) if axis != 1]
            exact = value.double()
            mean, square = exact.mean(others), (exact * exact).mean(others)
            before = found.get(name, (torch.zeros_like(mean), torch.zeros_like(mean), 0))
            found[name] = (
                before[0] + (mean - before[0]) / count,
                before[1] + (square - before[1]) / count,
                value.dim(),
            )
    return found
