"""How far a student's answers are from its teacher's."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from sparsecc.errors import InputError

FEATURE_WEIGHT = 0.3
"""What all inner values together weigh beside an output."""
SMALLEST = 1e-12


def relative_error(
    found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], outputs: Collection[str]
) -> Tensor:
    """Squared error over the variance of what is wanted, averaged; inner values count less than outputs."""
    inner = [n for n in found if n not in outputs]
    terms: list[Tensor] = []
    weights: list[float] = []
    for name, value in found.items():
        target = wanted[name].float()
        if not wanted[name].is_floating_point() or target.numel() < 2:
            continue
        terms.append(((value.float() - target) ** 2).mean() / (target.var() + SMALLEST))
        weights.append(FEATURE_WEIGHT / len(inner) if name in inner else 1.0)
    if not any(name in outputs for name in found) or not terms:
        raise InputError("no output is floating point: there is nothing to distil")
    total = torch.stack([term * weight for term, weight in zip(terms, weights, strict=True)]).sum()
    return total / sum(weights)


def agreement(
    found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], outputs: Collection[str]
) -> tuple[int, int]:
    """(places where the arg max of the first output with classes is the same, places in all)."""
    name = next((n for n in outputs if wanted[n].dim() >= 2 and wanted[n].is_floating_point()), None)
    if name is None or wanted[name].shape[-1] < 2:
        return 0, 0
    same = found[name].argmax(-1) == wanted[name].argmax(-1)
    return int(same.sum()), same.numel()
