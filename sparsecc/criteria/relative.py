"""Scores that weigh activations with weights relative to others: CFSP as published, Beta-Rank."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from sparsecc.axes.algebra import Axis
from sparsecc.axes.owners import owners_of
from sparsecc.calibrate.layer_statistics import LayerStatistics
from sparsecc.criteria.activation import summed
from sparsecc.criteria.evidence import Evidence
from sparsecc.criteria.magnitude import l2
from sparsecc.graph.groups import Group


def cfsp(group: Group, evidence: Evidence) -> np.ndarray:
    """Σ_i |W_ij| / Σ_j' |W_ij'| · sqrt(E[x_j²]): a slot's share of every output's weights, times its activation.

    The formula of CFSP (Wang et al., 2025) with the shares taken over inputs; as released they cancel out, which
    leaves `act_norm`.
    """
    return summed(group, evidence, _shares)


def _shares(layer: LayerStatistics) -> np.ndarray:
    sizes = np.abs(layer.consumer.matrices())
    rows = sizes.sum(axis=2, keepdims=True)
    share = sizes / np.where(rows > 0, rows, 1.0)
    return np.asarray(share.sum(axis=1) * np.sqrt(layer.variance + np.square(layer.mean)))


def beta_rank(group: Group, evidence: Evidence) -> np.ndarray:
    """mean |f_k| · deviation of filter k's output relative to that of its inputs (Beta-Rank, Kim et al., 2024).

    Both deviations are over samples and positions together, from the covariance of the inputs. Scaled to [0, 1]
    in every layer that makes the slots, and added. Without such a layer: l2.
    """
    total, made = np.zeros(group.size), False
    for layer, axis in _makers(group, evidence):
        weight = layer.consumer.matrices()
        spread = np.zeros(weight.shape[:2])
        for block in layer.blocks():
            part = weight[block.group][:, block.columns]
            spread[block.group] += np.einsum("ok,kl,ol->o", part, block.covariance, part, optimize=True)
        inputs = np.sqrt(np.maximum(layer.variance.mean(axis=1), 1e-30))[:, None]
        values = (np.abs(weight).mean(axis=2) * np.sqrt(np.maximum(spread, 0)) / inputs).ravel()
        owners = owners_of(axis, group.atom)
        sums = np.bincount(owners[owners >= 0], weights=values[owners >= 0], minlength=group.size)
        width = float(np.ptp(sums))
        if np.isfinite(width) and width > 0:
            total, made = total + (sums - sums.min()) / width, True
    return total if made else l2(group, evidence)


def _makers(group: Group, evidence: Evidence) -> Iterator[tuple[LayerStatistics, Axis]]:
    """The layers with statistics whose outputs are slots of the group, and the axis of these outputs."""
    layers = evidence.stats.layers if evidence.stats is not None else {}
    for value, position, axis in evidence.weights.values(group):
        for use in value.uses():
            layer = layers.get(use.node.name or "")
            if layer is None or layer.consumer.weight is not value:
                continue
            if position == (1 if layer.consumer.transposed else 0):
                yield layer, axis
