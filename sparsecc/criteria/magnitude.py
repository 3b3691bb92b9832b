"""Scores from the weights alone.

Group magnitude follows "Structurally Prune Anything" (Wang et al., 2024): an elementwise score is summed over
everything a slot owns in a member, normalised within the member so that a 3x3 kernel does not drown a scale
vector, and added over the members.
"""

from __future__ import annotations

import numpy as np

from sparsecc.axes.owners import owners_of, slot_sums
from sparsecc.criteria.evidence import Evidence
from sparsecc.criteria.weights import BLOCK
from sparsecc.graph.groups import Group


def l1(group: Group, evidence: Evidence) -> np.ndarray:
    """Sum of |w| per slot, members normalised to mean 1."""
    return _normalised(group, evidence, 1)


def l2(group: Group, evidence: Evidence) -> np.ndarray:
    """Sum of w² per slot, members normalised to mean 1."""
    return _normalised(group, evidence, 2)


def random(group: Group, evidence: Evidence) -> np.ndarray:
    """Uniform noise: the baseline every criterion must beat."""
    return np.random.default_rng((evidence.weights.seed, group.id)).random(group.size)


def first(group: Group, evidence: Evidence) -> np.ndarray:
    """Keep the first slots: for latency experiments, where which slots go does not matter."""
    return np.arange(group.size, 0, -1, dtype=np.float64)


def lamp(group: Group, evidence: Evidence) -> np.ndarray:
    """Each slot's share of the squared magnitude of those not smaller (LAMP, Lee et al., 2021): (0, 1]."""
    values = l2(group, evidence)
    order = np.argsort(values, kind="stable")
    tail = np.cumsum(values[order][::-1])[::-1]
    scores = np.empty(group.size)
    scores[order] = values[order] / np.where(tail > 0, tail, 1.0)
    return scores


def bn_scale(group: Group, evidence: Evidence) -> np.ndarray:
    """|scale| of the batch norms on the group ("Network Slimming", Liu et al., 2017); l2 without one."""
    total = np.zeros(group.size)
    for value, position, axis in evidence.weights.values(group):
        if position == 0 and any(u.node.op_type == "BatchNormalization" and u.idx == 1 for u in value.uses()):
            assert value.const_value is not None
            total += slot_sums(axis, group.atom, np.abs(value.const_value.numpy().astype(np.float64)))
    return total if total.any() else l2(group, evidence)


def fpgm(group: Group, evidence: Evidence) -> np.ndarray:
    """Distance of a slot's weights to those of all others (FPGM, He et al., 2019), members normalised."""
    total = np.zeros(group.size)
    for value, position, axis in evidence.weights.values(group):
        assert value.const_value is not None
        array = np.moveaxis(value.const_value.numpy(), position, 0)
        owners = owners_of(axis, group.atom)
        inner = products(array.reshape(len(owners), -1)[owners >= 0])
        squares = np.diagonal(inner)
        gaps = np.maximum(squares[:, None] + squares[None, :] - 2 * inner, 0)
        sums = np.bincount(owners[owners >= 0], weights=np.sqrt(gaps).sum(axis=1), minlength=group.size)
        if np.isfinite(sums).all() and sums.mean() > 0:
            total += sums / sums.mean()
    return total


def products(rows: np.ndarray) -> np.ndarray:
    """rows @ rows.T in double precision, some columns at a time."""
    inner = np.zeros((len(rows), len(rows)))
    width = max(1, BLOCK // max(len(rows), 1))
    for start in range(0, rows.shape[1], width):
        block = rows[:, start : start + width].astype(np.float64)
        inner += block @ block.T
    return inner


def _normalised(group: Group, evidence: Evidence, power: int) -> np.ndarray:
    total = np.zeros(group.size)
    for sums in evidence.weights.members(group, power):
        finite = sums[np.isfinite(sums)]
        mean = finite.mean() if finite.size else 0.0
        if mean > 0:
            total += sums / mean
    return total
