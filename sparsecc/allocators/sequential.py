"""One group after the other, each cut as far as the outputs allow with all that is cut before it.

The greedy oracle of "Performance-aware Approximation of Global Channel Pruning for Multitask CNNs" (Ye et al.,
2023), without labels: the loss is one plus how far the outputs move, groups come in the order of rising measured
sensitivity, and their tolerances multiply up to the whole bound.
"""

from __future__ import annotations

import math

import numpy as np

from sparsecc.allocators.base import Candidate, Loss, Problem, Selection, fill, joint_of
from sparsecc.allocators.dynamic_program import gains, losses_of
from sparsecc.allocators.joint_error import RUNS
from sparsecc.allocators.uniform import uniform
from sparsecc.axes.algebra import Atom

LEVELS = 8
"""Counts of a group that are tried, besides all: three cuts find the least that is allowed."""
BOUNDS = 2, 7
"""How many bounds are tried, at least and at most: they close in on the budget."""
_LEAP = 4.0


def sequential(problem: Problem) -> Selection:
    """The least bound on the joint loss that meets the budget, then filled up where there is room."""
    joint, start = joint_of(problem), uniform(problem)
    if not start.reached or start.counts == {c.atom: c.size for c in problem.candidates}:
        return start
    greedy = _Greedy(problem, joint)
    counts = {c.atom: c.counts()[0] for c in problem.candidates}
    low, bound, high = 0.0, joint(start.counts), math.inf
    fewest, most = BOUNDS
    for _ in range(max(fewest, min(most, RUNS // (3 * len(counts))))):
        tried = greedy.within(bound)
        if problem.cost.total(tried) <= problem.budget:
            counts, high = tried, bound
            bound = math.sqrt(low * high) if low > 0 else high / _LEAP
        else:
            low = bound
            bound = math.sqrt(low * high) if math.isfinite(high) else low * _LEAP
    return fill(
        problem, counts, problem.cost.total(counts), gains({c.atom: losses_of(c) for c in problem.candidates})
    )


def allowed(bound: float, part: float) -> float:
    """The loss up to which groups that cost a part of the whole may go: tolerances multiply to 1 + bound."""
    return float((1 + bound) ** part - 1)


class _Greedy:
    """Cuts group after group, the least sensitive first."""

    def __init__(self, problem: Problem, joint: Loss) -> None:
        self.joint = joint
        self.order = sorted(problem.candidates, key=sensitivity)
        self.levels = {c.atom: levels_of(c) for c in self.order}
        stakes = np.array([problem.cost.at_stake(c.atom) for c in self.order])
        self.parts = np.cumsum(stakes) / max(float(stakes.sum()), 1e-12)

    def within(self, bound: float) -> dict[Atom, int]:
        """Counts whose joint loss is within the bound."""
        counts = {c.atom: c.size for c in self.order}
        for candidate, part in zip(self.order, self.parts, strict=True):
            counts[candidate.atom] = self._least(candidate, counts, allowed(bound, part))
        return counts

    def _least(self, candidate: Candidate, counts: dict[Atom, int], bound: float) -> int:
        """The least count within the bound, beside the present counts of the others."""
        levels = self.levels[candidate.atom]
        low, high = 0, len(levels) - 1
        while low < high:
            middle = (low + high) // 2
            if self.joint({**counts, candidate.atom: levels[middle]}) <= bound:
                high = middle
            else:
                low = middle + 1
        return levels[low]


def sensitivity(candidate: Candidate) -> float:
    """The loss at about half of the slots, this group alone."""
    return losses_of(candidate)[min(candidate.counts(), key=lambda n: abs(n - candidate.size / 2))]


def levels_of(candidate: Candidate) -> list[int]:
    """At most LEVELS of the counts it may keep, evenly spread, and all: ascending."""
    *counts, whole = candidate.counts()
    places = np.linspace(0, len(counts) - 1, min(LEVELS, len(counts))).round().astype(int)
    return [*(counts[place] for place in places), whole]
