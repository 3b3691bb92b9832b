"""Criteria that need gradients: how much a scalar would change if what a slot owns were gone.

One table: a row says what number every weight gets in a batch (w its weight, g its gradient, H the second
derivatives), and how the numbers of a slot become its score. Larger stays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sparsecc.axes.algebra import Atom, Axis, atoms_of
from sparsecc.axes.owners import slot_sums
from sparsecc.errors import InputError
from sparsecc.graph.analysis import Analysis
from sparsecc.graph.groups import Group
from sparsecc.torch.scores.relevance import ALPHA, EPSILONS, Relevance, Rules

Tensors = dict[str, Tensor]
Uses = list[tuple[str, int, Axis]]
"""Of one group: (parameter, axis position, axis)."""
Sums = list[tuple[np.ndarray, np.ndarray]]
"""Of one group, per member tensor: sum and sum of magnitudes per slot."""


@dataclass(frozen=True)
class Batch:
    """What one batch gives: weights, gradients of the scalar, and a source of random signs."""

    weights: Tensors
    gradients: Tensors
    random: torch.Generator

    def curved(self, along: Tensors) -> Tensors:
        """H · along."""
        names = list(self.gradients)
        weights = [self.weights[n] for n in names]
        product = torch.stack([(self.gradients[n] * along[n].detach()).sum() for n in names]).sum()
        if not product.requires_grad:
            return {n: torch.zeros_like(w) for n, w in zip(names, weights, strict=True)}
        found = torch.autograd.grad(product, weights, allow_unused=True, retain_graph=True)
        pairs = zip(names, weights, found, strict=True)
        return {n: torch.zeros_like(w) if h is None else h for n, w, h in pairs}

    def signs(self) -> Tensors:
        """+1 or -1 for every weight."""
        return {n: random_signs(g, self.random) for n, g in self.gradients.items()}


def random_signs(like: Tensor, random: torch.Generator) -> Tensor:
    """+1 or -1 for every element."""
    return (torch.randint(0, 2, like.shape, generator=random) * 2 - 1).to(like.device, like.dtype)


def first_order(batch: Batch) -> Tensors:
    """w·g: what the scalar loses with the weight."""
    return {n: batch.weights[n] * g for n, g in batch.gradients.items()}


def second_order(batch: Batch) -> Tensors:
    """w·g - w²·h/2 with the diagonal h of H from random signs ("Optimal Brain Damage", LeCun et al., 1989)."""
    signs = batch.signs()
    curved = batch.curved(signs)
    return {n: w * batch.gradients[n] - w * w * signs[n] * curved[n] / 2 for n, w in _used(batch)}


def flow(batch: Batch) -> Tensors:
    """w·(H g): half of what |g|² loses with the weight."""
    curved = batch.curved(batch.gradients)
    return {n: w * curved[n] for n, w in _used(batch)}


def signed_flow(batch: Batch) -> Tensors:
    """w·(H sign g): what the sum of |g| loses with the weight."""
    curved = batch.curved({n: g.sign() for n, g in batch.gradients.items()})
    return {n: w * curved[n] for n, w in _used(batch)}


def _used(batch: Batch) -> list[tuple[str, Tensor]]:
    return [(n, batch.weights[n]) for n in batch.gradients]


def total(sums: Sums) -> np.ndarray:
    """Σ over all that the slot owns."""
    return np.asarray(np.sum([signed for signed, _ in sums], axis=0))


def size_of_total(sums: Sums) -> np.ndarray:
    """|Σ|."""
    return np.asarray(np.abs(total(sums)))


def squared_total(sums: Sums) -> np.ndarray:
    """(Σ)²."""
    return total(sums) ** 2


def total_size(sums: Sums) -> np.ndarray:
    """Σ |…|."""
    return np.asarray(np.sum([sizes for _, sizes in sums], axis=0))


def share_of_layer(sums: Sums) -> np.ndarray:
    """|Σ| per member tensor, each as a share of that tensor's, so that layers are comparable."""
    shares = [np.abs(signed) / max(float(np.abs(signed).sum()), 1e-30) for signed, _ in sums]
    return np.asarray(np.sum(shares, axis=0))


def projected(value: Tensor, random: torch.Generator) -> Tensor:
    """Outputs on random signs: the squared gradient is then, on average, the trace of the tangent kernel."""
    return (value * random_signs(value, random)).sum()


def winners(value: Tensor, random: torch.Generator) -> Tensor:
    """The largest output of every sample: where relevance starts."""
    return value.amax(-1).sum() if value.dim() else value


def peaks(value: Tensor, random: torch.Generator) -> Tensor:
    """The largest output over all positions, on average over samples and outputs: no labels needed."""
    return value.amax(1).mean() if value.dim() == 3 else value.mean()


def mean(value: Tensor, random: torch.Generator) -> Tensor:
    """A loss as it is; outputs by their mean."""
    return value.mean()


@dataclass(frozen=True)
class GradientCriterion:
    """`weigh` gives every weight its number, `combine` a slot its score, `scalar` what is differentiated; `rules`
    replace what functions send back.
    """

    weigh: Callable[[Batch], Tensors]
    combine: Callable[[Sums], np.ndarray]
    scalar: Callable[[Tensor, torch.Generator], Tensor] = mean
    rules: Rules = field(default_factory=dict)

    @property
    def is_curved(self) -> bool:
        """Whether it differentiates twice."""
        return self.weigh is not first_order


GRADIENT_CRITERIA: Mapping[str, GradientCriterion] = {
    # "Importance Estimation for Neural Network Pruning", Molchanov et al., 2019
    "taylor": GradientCriterion(first_order, size_of_total),
    "taylor2": GradientCriterion(second_order, size_of_total),
    # The empirical Fisher information of a slot's gate (Theis et al., 2018)
    "fisher": GradientCriterion(first_order, squared_total),
    # "SNIP: Single-shot Network Pruning", Lee et al., 2019
    "snip": GradientCriterion(first_order, total_size),
    # "Picking Winning Tickets by Preserving Gradient Flow", Wang et al., 2020
    "grasp": GradientCriterion(flow, total),
    # What the trace of the tangent kernel loses; of the kernel of sign descent, which Adam resembles, for "ntk-adam"
    "ntk": GradientCriterion(flow, total_size, projected),
    "ntk-adam": GradientCriterion(signed_flow, total_size, projected),
    # Relevance by the 0-rule of LRP, which is activation times gradient ("Pruning by Explaining", Yeom et al., 2021)
    "lrp": GradientCriterion(first_order, share_of_layer, winners),
    # ... by its alpha1-beta0 rule, and by its epsilon rule
    "lrp_alpha": GradientCriterion(first_order, share_of_layer, winners, ALPHA),
    "lrp_epsilon": GradientCriterion(first_order, share_of_layer, winners, EPSILONS),
    # "NIRVANA: Structured pruning reimagined for large language models compression", Ai et al., 2025
    "nirvana": GradientCriterion(first_order, total_size, peaks),
}
"""Name -> criterion. `loss` gives a scalar; for those in ON_OUTPUTS the outputs themselves."""

ON_OUTPUTS = frozenset({"ntk", "ntk-adam", "lrp", "lrp_alpha", "lrp_epsilon", "nirvana"})


def gradient_scores(
    module: nn.Module,
    names: Mapping[str, Sequence[str]],
    analysis: Analysis,
    groups: Sequence[Group],
    criterion: str,
    batches: Iterable[Any] | None,
    loss: Callable[[nn.Module, Any], Tensor] | None,
) -> dict[Atom, np.ndarray]:
    """Scores of every group, averaged over batches; the module and its gradients stay as they were.

    `names` gives the parameters that a value of the analysis stands for.
    """
    if batches is None or loss is None:
        raise InputError(
            f"criterion '{criterion}' needs gradients: give batches=… and loss=lambda module, batch: …"
        )
    row = GRADIENT_CRITERIA[criterion]
    parameters = dict(module.named_parameters(remove_duplicate=False))
    uses = {g.atom: uses_of(names, analysis, g, parameters) for g in groups}
    scores = {g.atom: np.zeros(g.size) for g in groups}
    count = 0
    for batch in _differentiated(module, parameters, row, batches, loss):
        count += 1
        numbers = {n: t.detach() for n, t in row.weigh(batch).items()}
        for group in groups:
            sums = slot_sums_of(group, uses[group.atom], numbers)
            scores[group.atom] += row.combine(sums) if sums else 0.0
    if not count:
        raise InputError(f"criterion '{criterion}': batches gave nothing: check the loader")
    least = min((float(s.min()) for s in scores.values()), default=0.0)
    return {atom: (score - min(least, 0.0)) / count for atom, score in scores.items()}


def uses_of(
    names: Mapping[str, Sequence[str]], analysis: Analysis, group: Group, parameters: Mapping[str, Any]
) -> Uses:
    """Where the parameters have a group's slots."""
    found: dict[tuple[str, int], Axis] = {}
    for value, axes in analysis.weights():
        name = next((n for n in names.get(value.name or "", ()) if n in parameters), None)
        for position, axis in enumerate(axes):
            if name is not None and group.atom in atoms_of(axis):
                found.setdefault((name, position), axis)
    return [(name, position, axis) for (name, position), axis in found.items()]


def _differentiated(
    module: nn.Module,
    parameters: Mapping[str, Tensor],
    row: GradientCriterion,
    batches: Iterable[Any],
    loss: Callable[..., Tensor],
) -> Iterable[Batch]:
    trained = {n: p for n, p in parameters.items() if p.requires_grad}
    random = torch.Generator().manual_seed(0)
    for batch in batches:
        with Relevance(row.rules) if row.rules else nullcontext():
            value = row.scalar(loss(module, batch), random)
        found = torch.autograd.grad(
            value, list(trained.values()), allow_unused=True, create_graph=row.is_curved
        )
        pairs = zip(trained, found, strict=True)
        yield Batch(trained, {n: g for n, g in pairs if g is not None}, random)


def slot_sums_of(group: Group, uses: Uses, numbers: Mapping[str, Tensor]) -> Sums:
    """The numbers of a group's parameters, summed per slot."""
    found: Sums = []
    for name, position, axis in uses:
        number = numbers.get(name)
        if number is None:
            continue
        others = [i for i in range(number.dim()) if i != position]
        sums = number.sum(others) if others else number
        sizes = number.abs().sum(others) if others else number.abs()
        signed = slot_sums(axis, group.atom, sums.double().cpu().numpy())
        found.append((signed, slot_sums(axis, group.atom, sizes.double().cpu().numpy())))
    return found
