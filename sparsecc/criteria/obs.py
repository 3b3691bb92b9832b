"""The exact cost of removing slots when what is left is refitted, found greedily.

"Optimal Brain Surgeon" for coupled slots, as OBSPA ("Structurally Prune Anything", Wang et al., 2024): taking
the columns c from a layer with weight W and input covariance C, and refitting the others, costs
tr(W_c [C^-1]_cc^-1 W_c^T). The costs of all readers of a slot add up, each relative to its layer's output
power.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from sparsecc.axes.algebra import Atom
from sparsecc.calibrate import positive_definite
from sparsecc.calibrate.layer_statistics import LayerStatistics, Stats
from sparsecc.criteria.evidence import Evidence
from sparsecc.criteria.magnitude import l2
from sparsecc.graph.groups import Group

ROUNDS = 16
"""Slots go in about so many rounds; within one they are judged without each other."""
DAMPING = 0.01
_UNKNOWN = 1e300
"""The cost of what cannot be told (samples were no numbers): last to go, and still to go."""


def obs(group: Group, evidence: Evidence) -> np.ndarray:
    """Scores in the order of greedy removal: the first to go scores least. Without statistics: l2."""
    found = greedy(group.atom, group.size, evidence.stats) if evidence.stats is not None else None
    if found is None:
        return l2(group, evidence)
    scores = np.empty(group.size)
    rising = np.maximum.accumulate(np.diff(found.losses, prepend=0.0)[1:])
    scores[found.order] = rising + np.arange(group.size) * max(float(rising[-1]), 1e-12) * 1e-9
    return scores


@dataclass(frozen=True)
class Removal:
    """Slots in the order they go, and `losses[m]`, the relative output errors of the readers without m."""

    order: np.ndarray
    losses: np.ndarray


def greedy(atom: Atom, size: int, stats: Stats) -> Removal | None:
    """Remove all slots of an atom, cheapest first. None where no layer with statistics reads them."""
    readers = [reader for layer in stats.of(atom) for reader in _readers(layer, atom)]
    if not readers:
        return None
    left = np.ones(size, dtype=bool)
    order: list[int] = []
    losses = [0.0]
    while left.any():
        costs = sum((reader.costs(size) for reader in readers), np.zeros(size))
        costs = np.where(left, np.nan_to_num(costs, nan=_UNKNOWN, posinf=_UNKNOWN), np.inf)
        batch = max(1, min(size // ROUNDS, int(left.sum())))
        gone = np.argsort(costs, kind="stable")[:batch]
        before = losses[-1]
        true = sum(reader.drop(gone) for reader in readers)
        shares = np.cumsum(np.maximum(costs[gone], 1e-300))
        losses += list(before + true * shares / shares[-1])
        order += gone.tolist()
        left[gone] = False
    return Removal(np.array(order), np.array(losses))


def _readers(layer: LayerStatistics, atom: Atom) -> Iterator[_Reader]:
    owners, weight = layer.owners(atom), layer.consumer.matrices()
    for block in layer.blocks():
        own = owners[block.group, block.columns]
        if (own >= 0).any():
            part = weight[block.group][:, block.columns]
            yield _Reader(part, block.covariance.astype(np.float64), own)


class _Reader:
    """One layer's weight and inverse covariance, both kept up to date as slots go.

    A covariance that damping does not make positive definite is rounding alone: the input is the same on all samples,
    as behind a pooling over one sample. Weights alone judge then.
    """

    def __init__(self, weight: np.ndarray, covariance: np.ndarray, owners: np.ndarray) -> None:
        power = float(np.vdot(weight.T @ weight, covariance))  # of a matrix with itself: half the work
        diagonal = np.einsum("kk->k", covariance)
        mean = float(diagonal.mean())
        diagonal += DAMPING * (mean if mean > 0 else 1.0)
        inverse = positive_definite.inverse(covariance)
        if inverse is None:
            inverse, power = np.eye(len(covariance)), float(np.sum(np.square(weight, dtype=np.float64)))
        self.owners = owners
        self.weight = weight / np.sqrt(power if power > 0 else 1.0)
        self.inverse = inverse

    def costs(self, size: int) -> np.ndarray:
        """What each slot alone would cost now: (size,)."""
        slots, counts = np.unique(self.owners[self.owners >= 0], return_counts=True)
        total = np.zeros(size)
        for width in np.unique(counts):
            chosen = slots[counts == width]
            owned = np.flatnonzero(np.isin(self.owners, chosen))
            ordered = owned[np.argsort(self.owners[owned], kind="stable")]
            columns = ordered.reshape(len(chosen), width)
            blocks = self.inverse[columns[:, :, None], columns[:, None, :]]
            parts = self.weight[:, columns]
            energy = np.einsum("osi,osj->sij", parts, parts, optimize=True)
            total[chosen] = np.einsum("sij,sij->s", np.linalg.inv(blocks), energy)
        return total

    def drop(self, slots: np.ndarray) -> float:
        """Remove slots, refit the rest; what that cost, NaN where samples were no numbers."""
        gone = np.flatnonzero(np.isin(self.owners, slots))
        if not len(gone):
            return 0.0
        rest = np.setdiff1d(np.arange(len(self.owners)), gone)
        root = positive_definite.inverse_root(self.inverse[np.ix_(gone, gone)])
        lost = self.weight[:, gone] @ root.T
        cross = root @ self.inverse[np.ix_(gone, rest)]
        cost = float(np.sum(np.square(lost)))
        self.weight = self.weight[:, rest] - lost @ cross
        self.inverse = self.inverse[np.ix_(rest, rest)]
        self.inverse -= cross.T @ cross  # of a matrix with itself: half the work
        self.owners = self.owners[rest]
        return max(cost, 0.0)
