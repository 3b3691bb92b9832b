"""What an allocator works on, and the rounding that all of them share."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from sparsecc.axes.algebra import Atom
from sparsecc.cost.model import CostModel


@dataclass(frozen=True)
class Candidate:
    """A free group to the allocator: scores per slot, the step its count moves in, the least it keeps.

    `shapes` are those of the weights it runs through. Where it was measured, `curve` is the loss at some counts,
    zero at `size`, and `turn` how far the block that it lies in turns the values that pass by, in half turns.
    `gone` marks slots of the group that go in any case: `size` and `scores` are those of the others.
    """

    atom: Atom
    size: int
    scores: np.ndarray
    step: int
    floor: int
    shapes: tuple[tuple[int, ...], ...] = ()
    curve: Mapping[int, float] | None = None
    turn: float | None = None
    gone: np.ndarray | None = None

    def counts(self) -> list[int]:
        """The counts it may keep, ascending: multiples of the step from the floor, and all."""
        first = -(-max(self.floor, 1) // self.step) * self.step
        return [*range(min(first, self.size), self.size, self.step), self.size]

    def best(self, count: int) -> np.ndarray:
        """The mask of its `count` highest scores; ties go to the earlier slot."""
        order = np.argsort(-self.scores, kind="stable")
        keep = np.zeros(self.size, dtype=bool)
        keep[order[:count]] = True
        if self.gone is None:
            return keep
        whole = ~self.gone
        whole[whole] = keep
        return whole


@dataclass(frozen=True)
class Selection:
    """How many slots each candidate keeps, and what that costs; `beat` is what loss curves asked for, where
    another plan was tried and lost less.
    """

    counts: dict[Atom, int]
    cost: float
    reached: bool
    beat: Selection | None = None


class Loss(Protocol):
    """How far the outputs move when all groups keep so many slots at once, on a share of the samples."""

    def __call__(self, counts: Mapping[Atom, int], share: float = 1.0) -> float: ...


@dataclass(frozen=True)
class Problem:
    """What an allocator is asked: counts of these groups that cost at most the budget, in the model's unit.

    `joint` runs the cut model on samples, where there are some.
    """

    candidates: Sequence[Candidate]
    cost: CostModel
    budget: float
    joint: Loss | None = None
    seed: int = 0


Worth = Callable[[Candidate, int], float]
"""How much a group deserves its next step when it keeps so many slots; larger comes first."""


_HALVINGS = 24
"""Enough to tell apart the shares at which one slot of sixteen million comes or goes."""


def bisect(problem: Problem, counts_at: Callable[[float], dict[Atom, int]], worth: Worth) -> Selection:
    """The largest share in [0, 1] whose counts fit the budget, then filled up where there is room."""
    cost, budget = problem.cost, problem.budget
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
    return fill(problem, counts, total, worth)


def fill(problem: Problem, counts: Mapping[Atom, int], total: float, worth: Worth) -> Selection:
    """Give back slots one step at a time, to whom it is worth most, while the budget allows.

    What a step costs only grows as others get theirs, so a group whose step did not fit is done.
    """
    counts, candidates = dict(counts), problem.candidates
    steps = [iter([n for n in c.counts() if n > counts[c.atom]]) for c in candidates]
    waiting = [(-worth(c, counts[c.atom]), i) for i, c in enumerate(candidates) if counts[c.atom] < c.size]
    heapq.heapify(waiting)
    while waiting:
        _, i = heapq.heappop(waiting)
        candidate = candidates[i]
        larger = next(steps[i], None)
        if larger is None:
            continue
        extra = problem.cost.change(counts, candidate.atom, larger)
        if total + extra > problem.budget:
            continue
        counts[candidate.atom] = larger
        total += extra
        if larger < candidate.size:
            heapq.heappush(waiting, (-worth(candidate, larger), i))
    return Selection(counts, total, True)


def joint_of(problem: Problem) -> Loss:
    """The joint loss, which allocators have whose row says that they use it."""
    assert problem.joint is not None
    return problem.joint


class Nearest:
    """Rounds a number of slots per candidate to the nearest count that it may keep, the smaller of two as near."""

    def __init__(self, candidates: Sequence[Candidate]) -> None:
        self.atoms = [c.atom for c in candidates]
        self.size = np.array([c.size for c in candidates], dtype=np.int64)
        self.step = np.array([c.step for c in candidates], dtype=np.int64)
        floor = np.array([max(c.floor, 1) for c in candidates], dtype=np.int64)
        self.first = np.minimum(-(-floor // self.step) * self.step, self.size)
        self.last = np.maximum((self.size - 1 - self.first) // self.step, 0)

    def __call__(self, wanted: np.ndarray) -> dict[Atom, int]:
        steps = -((self.step - 2 * (wanted - self.first)) // (2 * self.step))
        stepped = self.first + self.step * np.clip(steps, 0, self.last)
        counts = np.where(np.abs(stepped - wanted) <= self.size - wanted, stepped, self.size)
        return dict(zip(self.atoms, counts.astype(np.int64).tolist(), strict=True))


def by_shares(problem: Problem, shares_at: Callable[[float], np.ndarray | float]) -> Selection:
    """The largest `t` in [0, 1] whose shares of each group fit the budget; shares at 0 and 1 are all 0 and all 1.

    What is left of the budget goes to the groups that are cut most.
    """
    nearest = Nearest(problem.candidates)
    return bisect(problem, lambda t: nearest(shares_at(t) * nearest.size), lambda c, kept: -kept / c.size)
