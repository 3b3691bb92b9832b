"""Scores from two sets of samples: what a domain needs and general data does not.

"GAPrune: Gradient-Alignment Pruning for Domain-Aware Embeddings", 2025, summed over what a slot owns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsecc.axes.algebra import Atom
from sparsecc.graph.analysis import Analysis
from sparsecc.graph.groups import Group
from sparsecc.torch.scores.gradients import Tensors, slot_sums_of, total, uses_of

BALANCE = 1.0
"""How much general importance counts against that of the domain."""
MAGNITUDE = 0.4
"""The part of a weight's magnitude; the paper has 0.3 to 0.5."""
ALIGNED, LEAST, MOST = 0.2, 0.8, 1.2
"""How much aligned gradients add, and the bounds of what they do."""


@dataclass(frozen=True)
class Sensitivity:
    """Of one sample set, by parameter: the diagonal of the Fisher information, and the mean gradient."""

    fisher: Tensors
    gradient: Tensors


def domain_scores(
    module: nn.Module,
    names: Mapping[str, Sequence[str]],
    analysis: Analysis,
    groups: Sequence[Group],
    domain: Sensitivity,
    general: Sensitivity,
    *,
    literal: bool,
) -> dict[Atom, np.ndarray]:
    """Atom -> the sum of `alignment` over what each slot owns. `names` gives the parameters of a value."""
    parameters = dict(module.named_parameters(remove_duplicate=False))
    numbers = {
        name: alignment(
            parameters[name].detach(),
            (domain.fisher[name], general.fisher[name]),
            (domain.gradient[name], general.gradient[name]),
            literal=literal,
        )
        for name in domain.fisher
    }
    scores = {}
    for group in groups:
        sums = slot_sums_of(group, uses_of(names, analysis, group, parameters), numbers)
        scores[group.atom] = total(sums) if sums else np.zeros(group.size)
    return scores


def alignment(
    weight: Tensor, fishers: tuple[Tensor, Tensor], gradients: tuple[Tensor, Tensor], *, literal: bool
) -> Tensor:
    """Each weight's number in (0, 1), from (domain, general) pairs of one tensor; larger stays.

    (F_d - F_g)·|w|, a fifth more or less by how the gradients agree around it, with sqrt|w| added; then softplus,
    standardised over the tensor, and a sigmoid. In the literal form the Fishers are as they are, 1e-6 and less
    beside the root's 0.04, and agreement is a product of gradients of unit length; else both Fishers are divided
    by their joint mean, and the gradients by their own root mean squares.
    """
    size = weight.abs()
    scale = _or_one(torch.stack(fishers).mean())
    d, g = fishers if literal else (fishers[0] / scale, fishers[1] / scale)
    lengths = [x.norm() if literal else x.square().mean().sqrt() for x in gradients]
    agreement = _smoothed(gradients[0] / _or_one(lengths[0]) * gradients[1] / _or_one(lengths[1]))
    factor = (1 + ALIGNED * agreement).clamp(LEAST, MOST)
    number = F.softplus((d - BALANCE * g) * size * factor + MAGNITUDE * size.sqrt())
    return torch.sigmoid((number - number.mean()) / _or_one(number.std(correction=0)))


def _or_one(divisor: Tensor) -> Tensor:
    """A divisor that is not zero."""
    return torch.where(divisor > 0, divisor, torch.ones_like(divisor))


def _smoothed(values: Tensor) -> Tensor:
    """The mean over 3 x 3 neighbours in the last two axes."""
    rows = values.shape[-2] if values.dim() > 1 else 1
    flat = values.reshape(-1, 1, rows, values.shape[-1])
    return F.avg_pool2d(flat, 3, 1, 1, count_include_pad=False).reshape(values.shape)
