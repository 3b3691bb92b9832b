"""What an allocator works on, and the rounding that all of them share."""

from __future__ import annotations

import heapq
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


_HALVINGS = 24
"""Enough to tell apart the shares at which one slot of sixteen million comes or goes."""


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
    for _ in range(_HALVINGS):
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
    """Give back slots one step at a time, to whom it is worth most, while the budget allows.

    What a step costs only grows as others get theirs, so a group whose step did not fit is done.
    """
    counts = dict(counts)
    steps = [iter([n for n in c.counts() if n > counts[c.atom]]) for c in candidates]
    waiting = [(-worth(c, counts[c.atom]), i) for i, c in enumerate(candidates) if counts[c.atom] < c.size]
    heapq.heapify(waiting)
    while waiting:
        _, i = heapq.heappop(waiting)
        candidate = candidates[i]
        larger = next(steps[i], None)
        if larger is None:
            continue
        extra = cost.change(counts, candidate.atom, larger)
        if total + extra > budget:
            continue
        counts[candidate.atom] = larger
        total += extra
        if larger < candidate.size:
            heapq.heappush(waiting, (-worth(candidate, larger), i))
    return counts, total
