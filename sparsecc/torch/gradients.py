"""Criteria that need gradients: how much the loss would change if a slot's weights were gone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sparsecc.axes import Atom, Axis, atoms_of, slot_sums
from sparsecc.errors import InputError
from sparsecc.graph.analysis import Analysis
from sparsecc.graph.groups import Group
from sparsecc.torch.program import Program

Uses = list[tuple[str, int, Axis]]
"""Of one group: (parameter, axis position, axis)."""


def taylor(total: np.ndarray, absolute: np.ndarray) -> np.ndarray:
    """|Σ w·g| over everything a slot owns, per batch ("Importance Estimation", Molchanov et al., 2019)."""
    return np.asarray(np.abs(total))


def fisher(total: np.ndarray, absolute: np.ndarray) -> np.ndarray:
    """(Σ w·g)², per batch: the empirical Fisher information of a slot's gate (Theis et al., 2018)."""
    return total**2


def snip(total: np.ndarray, absolute: np.ndarray) -> np.ndarray:
    """Σ |w·g|: connection sensitivity ("SNIP", Lee et al., 2019), summed over a slot."""
    return absolute


GRADIENT_CRITERIA: Mapping[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "taylor": taylor,
    "fisher": fisher,
    "snip": snip,
}
"""Name -> (Σ w·g, Σ |w·g|) of one batch -> score per slot; scores of the batches are averaged."""


def gradient_scores(
    module: nn.Module,
    program: Program,
    analysis: Analysis,
    groups: Sequence[Group],
    criterion: str,
    batches: Iterable[Any] | None,
    loss: Callable[[nn.Module, Any], Tensor] | None,
) -> dict[Atom, np.ndarray]:
    """Scores of every group from the gradients of a loss; the module and its gradients stay as they were."""
    if batches is None or loss is None:
        raise InputError(
            f"criterion '{criterion}' needs gradients: give batches=… and loss=lambda module, batch: …"
        )
    row = GRADIENT_CRITERIA[criterion]
    parameters = dict(module.named_parameters(remove_duplicate=False))
    uses = {g.atom: _uses(program, analysis, g, parameters) for g in groups}
    scores = {g.atom: np.zeros(g.size) for g in groups}
    count = 0
    for products in _products(module, parameters, batches, loss):
        count += 1
        for group in groups:
            total, absolute = _slot_totals(group, uses[group.atom], products)
            scores[group.atom] += row(total, absolute)
    if not count:
        raise InputError(f"criterion '{criterion}': batches gave nothing: check the loader")
    return {atom: score / count for atom, score in scores.items()}


def _uses(program: Program, analysis: Analysis, group: Group, parameters: Mapping[str, Any]) -> Uses:
    found: dict[tuple[str, int], Axis] = {}
    for value, axes in analysis.weights():
        name = next((n for n in program.names[value.name or ""] if n in parameters), None)
        for position, axis in enumerate(axes):
            if name is not None and group.atom in atoms_of(axis):
                found.setdefault((name, position), axis)
    return [(name, position, axis) for (name, position), axis in found.items()]


def _products(
    module: nn.Module, parameters: Mapping[str, Tensor], batches: Iterable[Any], loss: Callable[..., Tensor]
) -> Iterable[dict[str, Tensor]]:
    """Per batch, weight times gradient of every parameter."""
    trained = {n: p for n, p in parameters.items() if p.requires_grad}
    for batch in batches:
        value = loss(module, batch)
        found = torch.autograd.grad(value, list(trained.values()), allow_unused=True)
        pairs = zip(trained.items(), found, strict=True)
        yield {n: (p * g).detach() for (n, p), g in pairs if g is not None}


def _slot_totals(group: Group, uses: Uses, products: Mapping[str, Tensor]) -> tuple[np.ndarray, np.ndarray]:
    total, absolute = np.zeros(group.size), np.zeros(group.size)
    for name, position, axis in uses:
        product = products.get(name)
        if product is None:
            continue
        others = [i for i in range(product.dim()) if i != position]
        sums = product.sum(others) if others else product
        sizes = product.abs().sum(others) if others else product.abs()
        total += slot_sums(axis, group.atom, sums.double().cpu().numpy())
        absolute += slot_sums(axis, group.atom, sizes.double().cpu().numpy())
    return total, absolute
