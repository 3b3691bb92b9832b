"""Penalties that draw whole slots of coupled tensors towards zero, to add to a training loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sparsecc.axes.algebra import atoms_of
from sparsecc.axes.owners import owners_of
from sparsecc.graph.analysis import Analysis
from sparsecc.graph.groups import Group
from sparsecc.torch.program.exported import Program

Use = tuple[Tensor, int, Tensor]
"""(parameter, axis, for each slot of the axis the slot of the group or -1)."""


@dataclass(frozen=True)
class Owned:
    """What one group owns of the parameters."""

    group: Group
    uses: Sequence[Use]

    def squares(self) -> Tensor:
        """Per slot, the mean square of all it owns. Shape (group size,)."""
        total, elements = torch.zeros(()), 0.0
        for tensor, axis, owner in self.uses:
            others = [i for i in range(tensor.dim()) if i != axis]
            sums = tensor.square().sum(others) if others else tensor.square()
            seen = (owner >= 0).to(tensor.device)
            spread = torch.zeros(self.group.size, device=tensor.device, dtype=tensor.dtype)
            places = owner.to(tensor.device)[seen]
            total = total.to(tensor.device) + spread.index_add(0, places, sums[seen])
            elements += tensor.numel() / self.group.size
        return total / max(elements, 1.0)


def owned_by(
    groups: Sequence[Group], analysis: Analysis, program: Program, parameters: Mapping[str, Tensor]
) -> list[Owned]:
    """The floating-point parameters of every group."""
    found = []
    for group in groups:
        uses: dict[tuple[int, int], Use] = {}
        for value, axes in analysis.weights():
            tensor = parameters.get(program.names[value.name or ""][0])
            if not isinstance(tensor, nn.Parameter) or not tensor.is_floating_point():
                continue
            for position, axis in enumerate(axes):
                if group.atom in atoms_of(axis):
                    owner = torch.from_numpy(owners_of(axis, group.atom))
                    uses[id(tensor), position] = (tensor, position, owner)
        if uses:
            found.append(Owned(group, list(uses.values())))
    return found


def lasso(squares: Tensor, doomed: Tensor, done: float) -> Tensor:
    """Group lasso: the norm of every slot ("Learning Structured Sparsity", Wen et al., 2016)."""
    return (squares + 1e-12).sqrt().sum()


def growing(squares: Tensor, doomed: Tensor, done: float) -> Tensor:
    """The squares of the slots that will go, the more the later ("Growing Regularization", Wang et al., 2021)."""
    return done * squares[doomed].sum()


def polarization(squares: Tensor, doomed: Tensor, done: float) -> Tensor:
    """Norms are drawn to zero and away from their mean, so that they part ("Polarization", Zhuang et al., 2020)."""
    norms = (squares + 1e-12).sqrt()
    return (POLARITY * norms - (norms - norms.mean()).abs()).sum()


POLARITY = 1.2
"""How much smallness counts beside apartness."""

Regulariser = Callable[[Tensor, Tensor, float], Tensor]
"""(mean square per slot, which slots go at the final ratio, share of the steps done) -> penalty."""

REGULARISERS: Mapping[str, Regulariser] = {
    "lasso": lasso,
    "growing": growing,
    "polarization": polarization,
}
