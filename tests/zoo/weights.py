"""Seeded random weights that hide nothing: no tensor is constant, no statistic is the identity."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

GAIN = 1.3
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_OTHER_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)


@torch.no_grad()
def randomize(module: nn.Module) -> None:
    """Fills weights in place from torch's global generator.

    Convolutions and linears get N(0, 1.69/fan_in), embeddings N(0, 0.42), BatchNorm statistics a mean from
    N(0, 0.04) and a variance from [0.5, 2], norm weights N(1, 0.04) and biases N(0, 0.04). Any other
    constant parameter gets N(0, 0.04) added; stacked matrices near zero (experts) are scaled like linears.
    """
    done: set[int] = set()
    for part in module.modules():
        _randomize_part(part, done)
    for parameter in module.parameters():
        if id(parameter) not in done:
            _randomize_other(parameter)


def _randomize_part(part: nn.Module, done: set[int]) -> None:
    if isinstance(part, _BATCH_NORMS) and part.running_mean is not None and part.running_var is not None:
        part.running_mean.normal_(0.0, 0.2)
        part.running_var.uniform_(0.5, 2.0)
    if isinstance(part, (*_BATCH_NORMS, *_OTHER_NORMS)):
        _randomize_affine(part, done)
        return
    weight = getattr(part, "weight", None)
    if not isinstance(weight, nn.Parameter) or id(weight) in done:
        return
    if isinstance(part, (nn.Linear, *_CONVOLUTIONS)):
        fan_in = weight.numel() // weight.shape[0]
    elif isinstance(part, _TRANSPOSED):
        fan_in = weight.shape[0] * math.prod(weight.shape[2:]) // math.prod(part.stride)
    elif isinstance(part, nn.Embedding):
        fan_in = 4
    else:
        return
    weight.normal_(0.0, GAIN / math.sqrt(max(fan_in, 1)))
    done.add(id(weight))


def _randomize_affine(norm: nn.Module, done: set[int]) -> None:
    for name, centre in (("weight", 1.0), ("bias", 0.0)):
        parameter = getattr(norm, name, None)
        if isinstance(parameter, nn.Parameter) and id(parameter) not in done:
            parameter.normal_(centre, 0.2)
            done.add(id(parameter))


def _randomize_other(parameter: Tensor) -> None:
    if not parameter.is_floating_point():
        return
    if parameter.dim() <= 1 or _is_constant(parameter):
        if _is_constant(parameter) or parameter.abs().max() < 0.1:
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
        return
    if parameter.std() < 0.1:
        parameter.normal_(0.0, GAIN / math.sqrt(parameter.shape[-1]))


def _is_constant(tensor: Tensor) -> bool:
    return bool((tensor == tensor.flatten()[0]).all())
