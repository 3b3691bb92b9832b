"""Counts that lose least in all, when losses add up and so, nearly, do costs.

The allocation of "Efficient Joint Optimization of Layer-Adaptive Weight Pruning" (Xu et al., 2023): one loss
curve per group, one dynamic program over a budget in whole units.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from sparsecc.allocators.base import Candidate, Problem, Selection, Worth, fill
from sparsecc.allocators.threshold import global_threshold
from sparsecc.allocators.uniform import uniform
from sparsecc.axes.algebra import Atom

UNITS = 2000
"""Into how many units a budget is cut: an error of 0.05 % of it at most per item."""
POWERS = 1.0, 1.5, 2.0
"""Of the losses whose sums are solved."""
CLEARLY = 0.9
"""A loss on few samples is less than another below this share of it."""
_PASSES = 4
_SHRINKS = 24


def additive_allocate(
    losses: Sequence[Sequence[float]], costs: Sequence[Sequence[float]], budget: float
) -> list[int] | None:
    """One option per item: least sum of losses whose costs sum to at most the budget; None where none fits.

    Costs are non-negative and rounded up to budget / UNITS, so that the budget always holds.
    """
    if budget < 0:
        return None
    unit = budget / UNITS if budget > 0 else 1.0
    whole = [[int(np.ceil(c / unit - 1e-9)) if budget > 0 else int(c > 0) for c in item] for item in costs]
    limit = UNITS if budget > 0 else 0
    best = np.zeros(limit + 1)
    chosen = np.zeros((len(losses), limit + 1), dtype=np.int32)
    for i, (item, prices) in enumerate(zip(losses, whole, strict=True)):
        following = np.full(limit + 1, np.inf)
        for option, (loss, price) in enumerate(zip(item, prices, strict=True)):
            if price > limit:
                continue
            reached = np.full(limit + 1, np.inf)
            reached[price:] = best[: limit + 1 - price] + loss
            better = reached < following
            chosen[i, better] = option
            following = np.where(better, reached, following)
        best = following
    if not np.isfinite(best[limit]):
        return None
    picks, left = [], limit
    for i in reversed(range(len(losses))):
        picks.append(int(chosen[i, left]))
        left -= whole[i][picks[-1]]
    return picks[::-1]


def distortion(problem: Problem) -> Selection:
    """Least summed loss within the budget.

    Cuts lose more together than alone, the deeper the more so: where they can be tried, sums of powers of the
    losses, which spread the cuts, are solved too, and of these the counts that move the outputs least are taken.
    """
    joint = problem.joint
    if joint is None:
        return least_sum(problem)
    found = {tuple(s.counts.values()): s for s in (least_sum(problem, power) for power in POWERS)}
    first, *others = found.values()
    reached = [selection for selection in found.values() if selection.reached]
    return min(reached or [first], key=lambda s: joint(s.counts)) if others else first


def rehearsed(problem: Problem) -> Selection:
    """As `distortion`, or the counts of one threshold over all groups, which owe curves nothing, where these are
    tried and clearly move the outputs less.
    """
    joint, best = problem.joint, distortion(problem)
    if joint is None:
        return best
    other = global_threshold(problem)
    if not other.reached or other.counts == best.counts:
        return best
    return replace(other, beat=best) if joint(other.counts) < CLEARLY * joint(best.counts) else best


def least_sum(problem: Problem, power: float = 1.0) -> Selection:
    """Least sum of the losses to that power.

    Costs of coupled groups multiply: they are taken as additive around the present counts, and again around
    the counts that this gives, until nothing improves. What rounding leaves of the budget is filled up.
    """
    curves = {c.atom: {n: loss**power for n, loss in losses_of(c).items()} for c in problem.candidates}
    best = uniform(problem)
    best_loss = _loss(curves, best.counts)
    if not best.reached:
        return best
    for _ in range(_PASSES):
        found = _around(problem, curves, best.counts)
        if found is None or _loss(curves, found.counts) >= best_loss:
            break
        best, best_loss = found, _loss(curves, found.counts)
    return best


def losses_of(candidate: Candidate) -> dict[int, float]:
    """The loss at every count it may keep: measured where there is a curve, else the scores given up."""
    allowed = candidate.counts()
    if candidate.curve is not None:
        return {n: loss_at(candidate.curve, n) for n in allowed}
    scores = np.sort(np.nan_to_num(candidate.scores, posinf=np.nanmax(candidate.scores, initial=0.0)))
    given_up = np.concatenate([[0.0], np.cumsum(scores)]) / (scores.sum() or 1.0)
    return {n: float(given_up[candidate.size - n]) for n in allowed}


def loss_at(curve: Mapping[int, float], kept: int) -> float:
    """The loss of any count, between those that were measured."""
    known = sorted(curve)
    return float(np.interp(kept, known, [curve[n] for n in known]))


def gains(curves: Mapping[Atom, Mapping[int, float]]) -> Worth:
    """The worth by which the next step goes where it saves the most loss."""

    def gain(candidate: Candidate, kept: int) -> float:
        curve = curves[candidate.atom]
        larger = min((n for n in curve if n > kept), default=kept)
        return curve[kept] - curve[larger] if kept in curve else 0.0

    return gain


def _around(
    problem: Problem, curves: Mapping[Atom, Mapping[int, float]], counts: dict[Atom, int]
) -> Selection | None:
    """The dynamic program with costs linearised at `counts`, its budget tightened until it holds."""
    candidates, cost = problem.candidates, problem.cost
    options = [sorted(curves[c.atom]) for c in candidates]
    changes = [[cost.change(counts, c.atom, n) for n in o] for c, o in zip(candidates, options, strict=True)]
    lowest = [min(item) for item in changes]
    prices = [[change - low for change in item] for item, low in zip(changes, lowest, strict=True)]
    losses = [[curves[c.atom][n] for n in o] for c, o in zip(candidates, options, strict=True)]
    room = problem.budget - cost.total(counts) - sum(lowest)
    for step in range(_SHRINKS):
        picks = additive_allocate(losses, prices, room * 0.96**step)
        if picks is None:
            return None
        chosen = {c.atom: o[p] for c, o, p in zip(candidates, options, picks, strict=True)}
        spent = cost.total(chosen)
        if spent <= problem.budget:
            return fill(problem, chosen, spent, gains(curves))
    return None


def _loss(curves: Mapping[Atom, Mapping[int, float]], counts: Mapping[Atom, int]) -> float:
    return float(sum(curves[atom].get(n, 0.0) for atom, n in counts.items()))
