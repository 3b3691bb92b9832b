"""Experts that are like others go first: STUN (2025), as an order of removal.

Clusters of experts are merged two by two, nearest first, judged by their least similar members. Every merger leaves
one expert of the two clusters to stand for both; the other one goes. So any number of experts that is kept stands
for that many clusters.
"""

from __future__ import annotations

import numpy as np

from sparsecc.axes.algebra import resolve
from sparsecc.calibrate.routers import routers_of
from sparsecc.criteria.evidence import Evidence
from sparsecc.criteria.magnitude import products
from sparsecc.criteria.obs import obs
from sparsecc.graph.groups import Group

ROUTING = frozenset({"MatMul", "Gemm", "Add"})
"""Operators whose weights, where they have experts as slots, are the router's: a linear layer as exporters write it.
Experts of their own are multiplied by an Einsum or a stack."""


def stun(group: Group, evidence: Evidence) -> np.ndarray:
    """The distance at which an expert's cluster is merged into another; largest for the one that is left.

    Distances are those of router rows and of weights, less how often two are chosen together, each relative to its
    mean over all pairs. Groups that are not experts are scored as `auto` does.
    """
    if group.kind != "expert":
        return obs(group, evidence)
    rows, weights = (_squares(group, evidence, routing=routing) for routing in (True, False))
    together, times = np.zeros_like(rows), np.zeros(group.size)
    for router in routers_of(evidence.stats.routers, group.atom) if evidence.stats is not None else ():
        if len(router.times) == group.size:
            together, times = together + router.together, times + router.times
    distance = _relative(np.sqrt(rows)) + _relative(np.sqrt(weights)) - _relative(together)
    return merged(distance, weights, times)


def merged(distance: np.ndarray, squares: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Scores (n,) in the order in which clusters of n experts are merged. All but `times` (n,) are (n, n).

    Of two that could stand for a merged cluster, the one with the least `squares` to its members stays: it is the
    nearer to their mean. In a tie it is the one with more `times`, then the first.
    """
    size = len(distance)
    scores = np.zeros(size)
    if size < 2:
        return scores
    apart = distance + np.where(np.eye(size, dtype=bool), np.inf, 0.0)
    lowest = float(apart.min())
    span = max(float(distance.max()) - lowest, 1e-12)
    clusters = {expert: [expert] for expert in range(size)}
    height = 0.0
    for number in range(size - 1):
        a, b = sorted(int(i) for i in np.unravel_index(np.argmin(apart), apart.shape))
        height = max(height, float(apart[a, b]) - lowest)
        members = clusters[a] + clusters[b]
        keeps = min((a, b), key=lambda e: (squares[e, members].sum(), -times[e], e))
        goes = b if keeps == a else a
        clusters[keeps] = members
        farther = np.maximum(apart[a], apart[b])
        apart[keeps], apart[:, keeps] = farther, farther
        apart[goes], apart[:, goes] = np.inf, np.inf
        apart[keeps, keeps] = np.inf
        scores[goes] = height + span * 1e-9 * number
    scores[keeps] = max(height, span) * (1 + 1e-6)
    return scores


def _squares(group: Group, evidence: Evidence, *, routing: bool) -> np.ndarray:
    """Squared distances between experts by the router's weights, or by their own: (experts, experts)."""
    total = np.zeros((group.size, group.size))
    for value, position, axis in evidence.weights.values(group):
        used = {use.node.op_type for use in value.uses()}
        if (
            resolve(axis) is not group.atom
            or used.isdisjoint(ROUTING) is routing
            or value.const_value is None
        ):
            continue
        array = np.moveaxis(value.const_value.numpy(), position, 0)
        inner = products(array.reshape(len(array), -1))
        inner = (inner + inner.T) / 2
        powers = np.diagonal(inner)
        total += np.maximum(powers[:, None] + powers[None, :] - 2 * inner, 0)
    return np.nan_to_num(total, nan=0.0, posinf=0.0)


def _relative(values: np.ndarray) -> np.ndarray:
    """Values of pairs relative to their mean, zero where all are."""
    pairs = len(values) * (len(values) - 1)
    mean = float(values.sum() - np.trace(values)) / max(pairs, 1)
    return values / mean if mean > 0 else np.zeros_like(values)
