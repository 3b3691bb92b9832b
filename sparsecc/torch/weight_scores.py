"""Scores of a torch module's slots from its weights, and the candidates that an allocator chooses from."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from sparsecc.allocators import Candidate
from sparsecc.axes.algebra import Atom
from sparsecc.cost.model import CostModel, macs_model, params_model, slots_model
from sparsecc.criteria.weights import SlotWeights
from sparsecc.decide.channels import FLOOR, step_of
from sparsecc.decide.limits import Limits, settle
from sparsecc.errors import InputError
from sparsecc.graph.analysis import Analysis
from sparsecc.graph.groups import Group
from sparsecc.options import CompileOptions
from sparsecc.targets import target_named

Score = Callable[[Group, SlotWeights], np.ndarray]


def magnitude(power: int) -> Score:
    """Sum of |w|^power per slot, members normalised to mean 1 so that a kernel does not drown a scale."""

    def score(group: Group, weights: SlotWeights) -> np.ndarray:
        total = np.zeros(group.size)
        for sums in weights.members(group, power):
            mean = sums.mean()
            if mean > 0 and np.isfinite(mean):
                total += sums / mean
        return total

    return score


def random(group: Group, weights: SlotWeights) -> np.ndarray:
    """Uniform noise: the baseline every criterion must beat."""
    return np.random.default_rng((weights.seed, group.id)).random(group.size)


WEIGHT_CRITERIA: Mapping[str, Score] = {
    "auto": magnitude(2),
    "l1": magnitude(1),
    "l2": magnitude(2),
    "random": random,
}
"""Name -> score per slot of a group, larger = keep."""


def candidates(
    analysis: Analysis,
    groups: Sequence[Group],
    options: CompileOptions,
    scores: Mapping[Atom, np.ndarray] | None = None,
    limits: Limits | None = None,
    instead: Mapping[ir.Value, np.ndarray | None] | None = None,
) -> list[Candidate]:
    """The free groups as an allocator sees them, with the given scores or those of the weights, within the limits.

    `instead` is that of `SlotWeights`.
    """
    bounds = limits.of if limits is not None else {}
    weights = SlotWeights(analysis, options.seed, instead)
    target = target_named(options.target)
    found = []
    for group in groups:
        own = WEIGHT_CRITERIA[options.criterion](group, weights) if scores is None else scores[group.atom]
        own = np.nan_to_num(np.array(own, dtype=np.float64), nan=np.inf)
        step = step_of(group, target, options.align)
        floor = max(group.least, math.ceil(FLOOR * group.size))
        if group.atom in bounds:
            own[bounds[group.atom].held] = np.inf
        gone, floor = settle(bounds.get(group.atom), own, None, step, floor)
        live = own if gone is None else own[~gone]
        found.append(Candidate(group.atom, len(live), live, step, floor, weights.shapes(group), gone=gone))
    return found


def cost_of(analysis: Analysis, groups: Sequence[Group], metric: str) -> CostModel:
    """The cost model of a metric. InputError for one that torch modules do not have."""
    if metric == "macs":
        return macs_model(analysis)
    if metric == "params":
        return params_model(analysis)
    if metric == "channels":
        return slots_model(analysis, [g.atom for g in groups])
    raise InputError(f"metric '{metric}' is not one of a torch module: choose from macs, params, channels")
