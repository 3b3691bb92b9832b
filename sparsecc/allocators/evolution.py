"""Counts bred by trying them on samples, from those that single loss curves suggest.

The global search of "Týr-the-Pruner" (Li et al., 2025): a child moves slots from some groups to others at the same
cost; most children are seen on few samples, the best of them on all; moves get smaller from round to round.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from sparsecc.allocators.base import Candidate, Problem, Selection, fill, joint_of
from sparsecc.allocators.dynamic_program import distortion
from sparsecc.axes.algebra import Atom

PARTS = 1 / 4, 1 / 8, 1 / 16
"""The share of a group that a move takes, round after round: at least one step of its count."""
GENERATIONS, CHILDREN, SURVIVORS = 6, 12, 3
"""Generations to a round, children to a generation, and how many of them are seen on all samples."""
GLANCE = 1 / 8
"""The share of the samples that all children are seen on."""
MOVES = 4
"""Groups that give up slots in a child, at most: the least of two draws."""


def evolution(problem: Problem) -> Selection:
    """Starts from `distortion`; never has a larger joint loss than that, nor costs more than the budget."""
    joint, best = joint_of(problem), distortion(problem)
    if not best.reached or not problem.candidates:
        return best
    generator = np.random.default_rng(problem.seed)
    for part in PARTS:
        for _ in range(GENERATIONS):
            children = [child(problem, best.counts, part, generator) for _ in range(CHILDREN)]
            children.sort(key=lambda c: joint(c.counts, GLANCE))
            best = min([best, *children[:SURVIVORS]], key=lambda c: joint(c.counts))
    return best


def child(
    problem: Problem, parent: Mapping[Atom, int], part: float, generator: np.random.Generator
) -> Selection:
    """The parent with some groups a part smaller, and what that saves given to others, a part of each at a time."""
    counts = dict(parent)
    able = [c for c in problem.candidates if parent[c.atom] > c.counts()[0]]
    moves = min(generator.integers(1, MOVES + 1, 2))
    for place in generator.permutation(len(able))[:moves]:
        candidate = able[place]
        counts[candidate.atom] = _smaller(candidate, counts[candidate.atom], part)
    luck = dict(zip(counts, generator.random(len(counts)), strict=True))

    def worth(candidate: Candidate, kept: int) -> float:
        gave = counts[candidate.atom] < parent[candidate.atom]
        parts = (kept - counts[candidate.atom]) // (part * candidate.size)
        return -np.inf if gave else float(luck[candidate.atom] - parts)

    return fill(problem, counts, problem.cost.total(counts), worth)


def _smaller(candidate: Candidate, count: int, part: float) -> int:
    """The largest count that is a part, or a step, below; the least that it may keep where there is none."""
    smaller = [n for n in candidate.counts() if n < count]
    below = [n for n in smaller if n <= count - part * candidate.size]
    return below[-1] if below else smaller[0]
