"""Weights that a layer computes from others: weight norm and spectral norm, as parametrizations and as older hooks.

What is left of such a weight must be what the same layer without the norm would keep. So lengths are mended for what
the vectors lost, and the vectors of a spectral norm are found anew and hold the norm that the weight had; training
takes up both from there ("Weight Normalization", Salimans and Kingma, 2016; "Spectral Normalization for Generative
Adversarial Networks", Miyato et al., 2018).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

Indices = Mapping[int, np.ndarray]
Module = TypeVar("Module", bound=nn.Module)
_ROUNDS = 30
"""Of the power iteration that finds the vectors of what is left."""


@dataclass(frozen=True)
class Normed:
    """One such weight, by the full names of the tensors it is made of.

    `source` has the shape of the weight, `axis` is the one along which every slot has its own length (-1: one length
    of all), or along which a spectral norm counts rows. Of a weight norm `length` is given, of a spectral norm
    `left` and `right`, its singular vectors; the others are "".
    """

    layer: str
    name: str
    source: str
    axis: int
    length: str = ""
    left: str = ""
    right: str = ""


def normed_weights(module: nn.Module) -> Iterator[Normed]:
    """Every weight of a module that a weight norm or a spectral norm alone computes."""
    for path, part in module.named_modules():
        begin = f"{path}." if path else ""
        if parametrize.is_parametrized(part):
            for name, how in part.parametrizations.items():
                yield from _parametrized(path, name, f"{begin}parametrizations.{name}", how)
        for hook in part._forward_pre_hooks.values():
            stem = f"{begin}{getattr(hook, 'name', '')}"
            if isinstance(hook, WeightNorm):
                yield Normed(path, hook.name, f"{stem}_v", hook.dim, length=f"{stem}_g")
            elif isinstance(hook, SpectralNorm):
                yield Normed(path, hook.name, f"{stem}_orig", hook.dim, left=f"{stem}_u", right=f"{stem}_v")


def _parametrized(layer: str, name: str, stem: str, how: Any) -> Iterator[Normed]:
    kind = how[0]
    if len(how) > 1:
        return
    if isinstance(kind, parametrizations._WeightNorm):
        yield Normed(layer, name, f"{stem}.original1", kind.dim, length=f"{stem}.original0")
    elif isinstance(kind, parametrizations._SpectralNorm) and how.original.dim() > 1:
        yield Normed(layer, name, f"{stem}.original", kind.dim, left=f"{stem}.0._u", right=f"{stem}.0._v")


@torch.no_grad()
def composed_weights(module: nn.Module) -> dict[str, Tensor | None]:
    """By the name of a weight norm's vectors the weight that they make, of its lengths None: the weight has them."""
    found: dict[str, Tensor | None] = {}
    for one in normed_weights(module):
        if one.length:
            vectors, lengths = _tensor(module, one.source), _tensor(module, one.length)
            found[one.source] = vectors * (lengths / torch.norm_except_dim(vectors, 2, one.axis))
            found[one.length] = None
    return found


@contextmanager
def spectral_norms_held(module: nn.Module) -> Iterator[None]:
    """Within it spectral norms divide by the number that they would compute: exports see no sums over the weight."""
    held: list[Any] = []
    for one in normed_weights(module):
        if not one.left:
            continue
        layer, norm = module.get_submodule(one.layer), spectral_norm_of(module, one)
        if parametrize.is_parametrized(layer, one.name):
            kind = layer.parametrizations[one.name][0]  # type: ignore[index]
            kind.__dict__["forward"] = _divided_by(norm)
            held.append(kind)
        for hook in layer._forward_pre_hooks.values():
            if isinstance(hook, SpectralNorm) and hook.name == one.name:
                hook.__dict__["compute_weight"] = _hook_divided_by(one.source.rpartition(".")[2], norm)
                held.append(hook)
    try:
        yield
    finally:
        for kind in held:
            kind.__dict__.pop("forward", None)
            kind.__dict__.pop("compute_weight", None)


def _divided_by(norm: float) -> Any:
    return lambda weight: weight / norm


def _hook_divided_by(source: str, norm: float) -> Any:
    return lambda module, do_power_iteration: getattr(module, source) / norm


def spectral_norm_of(module: nn.Module, one: Normed) -> float:
    """What a weight is divided by in evaluation."""
    return float(_spectral_norm(module, one))


def _spectral_norm(module: nn.Module, one: Normed) -> Tensor:
    rows = rows_of(_tensor(module, one.source).detach(), one.axis)
    return _tensor(module, one.left) @ rows @ _tensor(module, one.right)


def rows_of(weight: Tensor, axis: int) -> Tensor:
    """The weight as a matrix with a row for every slot of an axis."""
    return weight.movedim(axis, 0).flatten(1)


def copied(module: Module) -> Module:
    """A deep copy; weights that hooks computed with a history of gradients, which torch does not copy, without it."""
    for part in module.modules():
        for hook in part._forward_pre_hooks.values():
            computed = part.__dict__.get(getattr(hook, "name", ""))
            if isinstance(hook, WeightNorm | SpectralNorm) and isinstance(computed, Tensor):
                part.__dict__[hook.name] = computed.detach()
    return copy.deepcopy(module)


def vectors_kept(module: nn.Module, tensors: Mapping[str, Indices]) -> dict[str, dict[int, np.ndarray]]:
    """What stays of the singular vectors beside the weights of a plan."""
    found: dict[str, dict[int, np.ndarray]] = {}
    for one in normed_weights(module):
        indices = tensors.get(one.source)
        if not one.left or indices is None:
            continue
        shape = _tensor(module, one.source).shape
        kept = [indices.get(axis, np.arange(size)) for axis, size in enumerate(shape)]
        if one.axis in indices:
            found[one.left] = {0: indices[one.axis]}
        others = [axis for axis in range(len(shape)) if axis != one.axis]
        numbers = np.arange(int(np.prod([shape[axis] for axis in others])))
        left = numbers.reshape([shape[axis] for axis in others])[np.ix_(*(kept[axis] for axis in others))]
        if left.size < numbers.size:
            found[one.right] = {0: left.ravel()}
    return found


def dense_norms(module: nn.Module, tensors: Mapping[str, Indices]) -> list[tuple[Normed, Tensor]]:
    """The weights of a plan that norms compute, with the norms that they have before slots go: of each slot of the
    axis that is left, or one."""
    found = []
    for one in normed_weights(module):
        indices = tensors.get(one.source)
        if indices is None:
            continue
        if one.length:
            found.append((one, lengths(_tensor(module, one.source).detach(), one.axis, indices)))
        else:
            found.append((one, _spectral_norm(module, one)))
    return found


def lengths(weight: Tensor, axis: int, indices: Indices) -> Tensor:
    """The lengths of a weight along an axis, of the slots of it that stay."""
    kept = indices.get(axis)
    if kept is not None:
        weight = weight.index_select(axis, torch.from_numpy(kept).to(weight.device))
    return torch.norm_except_dim(weight, 2, axis)


@torch.no_grad()
def hold_norms(module: nn.Module, dense: list[tuple[Normed, Tensor]]) -> None:
    """Make what is left of weights what it was, after their tensors were sliced."""
    for one, before in dense:
        weight = _tensor(module, one.source).detach()
        if one.length:
            length = _tensor(module, one.length)
            length.mul_(quotient(before, torch.norm_except_dim(weight, 2, one.axis)).reshape(length.shape))
        else:
            _hold_spectral_norm(
                _tensor(module, one.left), _tensor(module, one.right), rows_of(weight, one.axis), before
            )


def quotient(before: Tensor, after: Tensor) -> Tensor:
    """By what lengths change so that `after / before` of a weight's length stays what it was; 1 where that is 0."""
    return torch.where(before > 0, after / before, 1.0)


def _hold_spectral_norm(left: Tensor, right: Tensor, rows: Tensor, before: Tensor) -> None:
    for _ in range(_ROUNDS):
        left.copy_(functional.normalize(rows @ right, dim=0))
        right.copy_(functional.normalize(rows.T @ left, dim=0))
    after = left @ rows @ right
    if after > 0:
        left.mul_(before / after)


def _tensor(module: nn.Module, name: str) -> Tensor:
    path, _, last = name.rpartition(".")
    tensor: Tensor = getattr(module.get_submodule(path), last)
    return tensor
