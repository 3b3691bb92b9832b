"""The dense torch module with masks where a pruned copy of it lost slots.

What a layer gives in removed slots is zero, what a layer reads from removed slots is zero, and norms over
channels are taken over what is left: then the outputs are those of the pruned copy, if that is right.
"""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.judges.provenance import Kept, kept_slots

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_RECURRENT = (nn.LSTM, nn.GRU)
_CONSUMED = (*_CONVOLUTIONS, *_TRANSPOSED, nn.Linear)


class CannotJudgeError(Exception):
    """A kind of module lost slots for which it is not known here what masking means."""


def masked(dense: nn.Module, small: nn.Module) -> nn.Module:
    """A copy of `dense` with hooks that mask what `small`, a pruned copy, no longer has.

    CannotJudgeError for a module of an unknown kind, or weights that are no slice of the dense ones.
    """
    result = copy.deepcopy(dense)
    parts = dict(small.named_modules())
    for name, module in list(result.named_modules()):
        other = parts.get(name)
        if other is not None:
            _mask(result, name, module, other)
    return result


def _mask(root: nn.Module, name: str, module: nn.Module, small: nn.Module) -> None:
    kept = {n: _kept(f"{name}.{n}", p, small.get_parameter(n)) for n, p in module.named_parameters("", False)}
    if not any(kept.values()):
        return
    weight = kept.get("weight") or {}
    if isinstance(module, nn.GroupNorm):
        module.forward = partial(_group_norm, module, weight[0])  # type: ignore[method-assign]
    elif (
        isinstance(module, nn.LayerNorm)
        or "RMSNorm" in type(module).__name__
        or "LayerNorm" in type(module).__name__
    ):
        module.forward = partial(_norm, _cut_norm(module, small, weight[0]), weight[0])  # type: ignore[method-assign]
    elif isinstance(module, _BATCH_NORMS):
        _mask_output(module, weight.get(0), 1)
    elif isinstance(module, nn.Embedding):
        _mask_output(module, weight.get(1), -1)
    elif isinstance(module, _RECURRENT):
        _mask_recurrent(module, kept)
    elif isinstance(module, _CONSUMED) or type(module).__name__ == "Conv1D":
        _mask_layer(module, weight)
    elif isinstance(module, (nn.MultiheadAttention, nn.RNNBase)) or weight:
        raise CannotJudgeError(f"{name}: a {type(module).__name__} lost slots")


def _kept(name: str, dense: Tensor, small: Tensor) -> Kept:
    if dense.shape == small.shape:
        return {}
    found = kept_slots(dense.detach().numpy(), small.detach().numpy())
    if found is None:
        raise CannotJudgeError(f"{name} is no slice of the dense one")
    return found


def _mask_layer(module: nn.Module, weight: Kept) -> None:
    backwards = isinstance(module, _TRANSPOSED) or type(module).__name__ == "Conv1D"
    out, read = (1, 0) if backwards else (0, 1)
    dim = 1 if isinstance(module, (*_CONVOLUTIONS, *_TRANSPOSED)) else -1
    _mask_output(module, weight.get(out), dim)
    if read in weight and getattr(module, "groups", 1) == 1:
        _mask_input(module, weight[read], dim)


def _mask_recurrent(module: nn.Module, kept: dict[str, Kept]) -> None:
    hidden = kept.get("weight_hh_l0", {}).get(1)
    if hidden is not None:
        gone = torch.ones(module.hidden_size, dtype=torch.bool)
        gone[hidden] = False
        for name, parameter in module.named_parameters():
            if "weight_hh" in name:
                parameter.data[:, gone] = 0
        module.register_forward_hook(lambda _m, _i, out: (_zero_but(out[0], hidden, -1), out[1]))
    if 1 in kept.get("weight_ih_l0", {}):
        _mask_input(module, kept["weight_ih_l0"][1], -1)


def _mask_output(module: nn.Module, kept: Any, dim: int) -> None:
    if kept is not None:
        module.register_forward_hook(lambda _m, _i, out: _zero_but(out, kept, dim))


def _mask_input(module: nn.Module, kept: Any, dim: int) -> None:
    module.register_forward_pre_hook(lambda _m, given: (_zero_but(given[0], kept, dim), *given[1:]))


def _zero_but(x: Tensor, kept: Any, dim: int) -> Tensor:
    """Zero outside of the kept slots."""
    result = torch.zeros_like(x)
    slots = torch.as_tensor(kept)
    return result.index_copy(dim, slots, x.index_select(dim, slots))


def _cut_norm(module: nn.Module, small: nn.Module, kept: Any) -> nn.Module:
    """The smaller norm with the weights of the dense one in their order."""
    cut = copy.deepcopy(small)
    for name, parameter in module.named_parameters("", False):
        cut.get_parameter(name).data = parameter.detach()[torch.as_tensor(kept)]
    return cut


def _norm(small: nn.Module, kept: Any, x: Tensor, *_: Any) -> Tensor:
    """A norm over the kept channels, zero elsewhere."""
    dim = 1 if getattr(small, "data_format", "") == "channels_first" else -1
    result, slots = torch.zeros_like(x), torch.as_tensor(kept)
    return result.index_copy(dim, slots, small(x.index_select(dim, slots)))


def _group_norm(module: nn.GroupNorm, kept: Any, x: Tensor) -> Tensor:
    """The dense groups, each over its kept channels."""
    mask = torch.zeros(module.num_channels)
    mask[torch.as_tensor(kept)] = 1
    shape = (1, module.num_groups, -1, 1)
    split, mask = (
        x.reshape(len(x), module.num_groups, module.num_channels // module.num_groups, -1),
        mask.reshape(shape),
    )
    count = mask.sum(2, keepdim=True).clamp(min=1) * split.shape[-1]
    mean = (split * mask).sum((2, 3), keepdim=True) / count
    variance = (((split - mean) * mask) ** 2).sum((2, 3), keepdim=True) / count
    normed = ((split - mean) / torch.sqrt(variance + module.eps) * mask).reshape(x.shape)
    affine = [p.reshape(1, -1, *[1] * (x.ndim - 2)) for p in (module.weight, module.bias)]
    return _zero_but(normed * affine[0] + affine[1], kept, 1)


def result_layers(module: nn.Module, inputs: tuple[Tensor, ...]) -> list[nn.Module]:
    """The layers whose results reach the module's outputs through no other layer."""
    owners = {id(m.weight): m for m in module.modules() if isinstance(m, _CONSUMED)}
    outputs = module(*inputs)
    waiting = [o.grad_fn for o in (outputs if isinstance(outputs, (tuple, list)) else [outputs])]
    seen: set[Any] = set()
    found: dict[int, nn.Module] = {}
    while waiting:
        step = waiting.pop()
        if step is None or step in seen:
            continue
        seen.add(step)
        owned = [owners[id(v)] for v in map(_leaf, step.next_functions) if id(v) in owners]
        found.update({id(m): m for m in owned})
        if not owned:
            waiting.extend(following for following, _ in step.next_functions)
    return list(found.values())


def _leaf(edge: tuple[Any, int]) -> Any:
    """The parameter at the end of a chain of single steps (a transposed weight), else None."""
    step: Any = edge[0]
    while step is not None and not hasattr(step, "variable") and len(step.next_functions) == 1:
        step = step.next_functions[0][0]
    return getattr(step, "variable", None)
