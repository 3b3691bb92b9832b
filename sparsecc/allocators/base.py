"""What an allocator works on, and the rounding that all of them share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sparsecc.axes import Atom
from sparsecc.cost import CostModel


@dataclass(frozen=True)
class Candidate:
    """A free group to the allocator: scores per slot, the step its count moves in, the least it keeps.

    `curve`, where it was measured, is the loss at some counts, zero at `size`.
    """

    atom: Atom
    size: int
    scores: np.ndarray
    step: int
    floor: int
    curve: Mapping[int, float] | None = None

    def counts(self) -> list[int]:
        """The counts it may keep, ascending: multiples of the step from the floor, and all."""
        first = -(-max(self.floor, 1) // self.step) * self.step
        return [*range(min(first, self.size), self.size, self.step), self.size]

    def best(self, count: int) -> np.ndarray:
        """The mask of its `count` highest scores; ties go to the earlier slot."""
        order = np.argsort(-self.scores, kind="stable")
        keep = np.zeros(self.size, dtype=bool)
        keep[order[:count]] = True
        return keep


@dataclass(frozen=True)
class Selection:
    """How many slots each candidate keeps, and what that costs."""

    counts: dict[Atom, int]
    cost: float
    reached: bool


Allocator = Callable[[Sequence[Candidate], CostModel, float], Selection]
"""(candidates, cost model, budget in its unit) -> a selection that costs at most the budget if reachable."""


Worth = Callable[[Candidate, int], float]
"""How much a group deserves its next step when it keeps so many slots; larger comes first."""


def bisect(
    candidates: Sequence[Candidate],
    cost: CostModel,
    budget: float,
    counts_at: Callable[[float], dict[Atom, int]],
    worth: Worth,
) -> Selection:
    """The largest share in [0, 1] whose counts fit the budget, then filled up where there is room."""
    everything = counts_at(1.0)
    if cost.total(everything) <= budget:
        return Selection(everything, cost.total(everything), True)
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        if cost.total(counts_at(middle)) <= budget:
            low = middle
        else:
            high = middle
    counts = counts_at(low)
    total = cost.total(counts)
    if total > budget:
        return Selection(counts, total, False)
    counts, total = fill(candidates, cost, budget, counts, total, worth)
    return Selection(counts, total, True)


def fill(
    candidates: Sequence[Candidate],
    cost: CostModel,
    budget: float,
    counts: dict[Atom, int],
    total: float,
    worth: Worth,
) -> tuple[dict[Atom, int], float]:
    """Give back slots one step at a time, to whom it is worth most, while the budget allows."""
    counts = dict(counts)
    waiting = [(c, c.counts()) for c in candidates]
    while True:
        best: tuple[float, Candidate, int, float] | None = None
        for candidate, allowed in waiting:
            larger = next((n for n in allowed if n > counts[candidate.atom]), None)
            if larger is None:
                continue
            extra = cost.change(counts, candidate.atom, larger)
            if total + extra > budget:
                continue
            value = worth(candidate, counts[candidate.atom])
            if best is None or value > best[0]:
                best = (value, candidate, larger, extra)
        if best is None:
            return counts, total
        counts[best[1].atom] = best[2]
        total += best[3]
