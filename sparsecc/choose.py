"""From groups, scores and a budget to keep-masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sparsecc.allocators import Candidate, Selection, allocator_named
from sparsecc.axes import Atom
from sparsecc.cost import CostModel, macs_model, params_model, slots_model
from sparsecc.criteria import criterion_named
from sparsecc.criteria.weights import SlotWeights
from sparsecc.graph.analysis import Analysis
from sparsecc.graph.groups import Group
from sparsecc.options import CompileOptions
from sparsecc.targets import Target, target_named

FLOOR = 0.1
"""The share of a group that always stays: an emptied layer cuts the network."""


@dataclass(frozen=True)
class Choice:
    """The masks, what they cost by the asked metric, and whether the budget was reached."""

    keep: dict[Atom, np.ndarray]
    asked: float
    before: float
    after: float
    reached: bool

    @property
    def removed(self) -> float:
        """The share of the metric that goes."""
        return 1 - self.after / self.before if self.before else 0.0


def choose(analysis: Analysis, groups: Sequence[Group], options: CompileOptions, ratio: float) -> Choice:
    """Which slots of the free groups stay so that `ratio` of the metric goes."""
    free = [g for g in groups if g.is_free]
    cost = cost_model(analysis, free, options.metric, threads=options.threads)
    before = cost.total({})
    if not free or ratio == 0:
        return Choice({}, ratio, before, before, ratio == 0)
    candidates = scored(analysis, free, options)
    selection: Selection = allocator_named(options.allocator)(candidates, cost, (1 - ratio) * before)
    keep = {c.atom: c.best(selection.counts[c.atom]) for c in candidates if selection.counts[c.atom] < c.size}
    return Choice(keep, ratio, before, selection.cost, selection.reached)


def cost_model(analysis: Analysis, free: Sequence[Group], metric: str, *, threads: int = 1) -> CostModel:
    """The cost model of a metric; that of latency is measured on this machine, where it is not known yet."""
    if metric == "params":
        return params_model(analysis)
    if metric == "channels":
        return slots_model(analysis, [g.atom for g in free])
    if metric == "latency":
        from sparsecc.latency import LatencyTable, latency_model

        return latency_model(analysis, LatencyTable(threads))
    return macs_model(analysis)


def scored(analysis: Analysis, free: Sequence[Group], options: CompileOptions) -> list[Candidate]:
    """The free groups with their scores, steps and floors."""
    criterion = criterion_named(options.criterion)
    weights = SlotWeights(analysis, options.seed)
    target = target_named(options.target)
    candidates = []
    for group in free:
        scores = np.asarray(criterion(group, weights), dtype=np.float64)
        step = step_of(group, target, options.align)
        floor = max(1, int(np.ceil(FLOOR * group.size)))
        candidates.append(Candidate(group.atom, group.size, np.nan_to_num(scores, nan=np.inf), step, floor))
    return candidates


def step_of(group: Group, target: Target, align: str | int) -> int:
    """The multiple in which a group's count moves: the target's own, or what the user asked for."""
    if align != "auto":
        return max(1, min(int(align), group.size))
    if group.kind in ("head", "expert"):
        return 1
    return target.multiple(group.size, feeds_conv=group.feeds_conv)
