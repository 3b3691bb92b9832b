"""Scores from the weights alone.

Group magnitude follows "Structurally Prune Anything" (Wang et al., 2024): an elementwise score is summed over
everything a slot owns in a member, normalised within the member so that a 3x3 kernel does not drown a scale
vector, and added over the members.
"""

from __future__ import annotations

import numpy as np

from sparsecc.criteria.weights import SlotWeights
from sparsecc.graph.groups import Group


def l1(group: Group, weights: SlotWeights) -> np.ndarray:
    """Sum of |w| per slot, members normalised to mean 1."""
    return _normalised(group, weights, 1)


def l2(group: Group, weights: SlotWeights) -> np.ndarray:
    """Sum of w² per slot, members normalised to mean 1."""
    return _normalised(group, weights, 2)


def random(group: Group, weights: SlotWeights) -> np.ndarray:
    """Uniform noise: the baseline every criterion must beat."""
    return np.random.default_rng((weights.seed, group.id)).random(group.size)


def first(group: Group, weights: SlotWeights) -> np.ndarray:
    """Keep the first slots: for latency experiments, where which slots go does not matter."""
    return np.arange(group.size, 0, -1, dtype=np.float64)


def _normalised(group: Group, weights: SlotWeights, power: int) -> np.ndarray:
    total = np.zeros(group.size)
    for sums in weights.members(group, power):
        finite = sums[np.isfinite(sums)]
        mean = finite.mean() if finite.size else 0.0
        if mean > 0:
            total += sums / mean
    return total
