"""Scores from the inputs of the layers that read a group: how much of their output each slot carries."""

from __future__ import annotations

import numpy as np

from sparsecc.calibrate.channels import Measure
from sparsecc.calibrate.layer_statistics import LayerStatistics
from sparsecc.criteria.evidence import Evidence
from sparsecc.criteria.magnitude import l2
from sparsecc.graph.groups import Group


def act_norm(group: Group, evidence: Evidence) -> np.ndarray:
    """Mean square of the slot's activations: what CFSP (Wang et al., 2025) scores by as released."""
    return summed(group, evidence, lambda layer: layer.variance + np.square(layer.mean))


def wanda(group: Group, evidence: Evidence) -> np.ndarray:
    """Mean square times squared weights: Wanda (Sun et al., 2024) summed over what a slot owns."""
    return summed(group, evidence, lambda layer: (layer.variance + np.square(layer.mean)) * _energy(layer))


def fluctuation(group: Group, evidence: Evidence) -> np.ndarray:
    """Variance times squared weights: what a bias cannot take up (FLAP, An et al., 2024)."""
    return summed(group, evidence, lambda layer: layer.variance * _energy(layer))


def by_channel(group: Group, evidence: Evidence, measure: Measure) -> np.ndarray:
    """A measure of channels, summed per slot over the readers."""
    assert evidence.channels is not None
    found = evidence.channels(measure)

    def spread(layer: LayerStatistics) -> np.ndarray:
        return np.asarray(
            np.repeat(found[layer.consumer.name], layer.consumer.cells).reshape(layer.mean.shape)
        )

    return summed(group, evidence, spread)


def _energy(layer: LayerStatistics) -> np.ndarray:
    """Squared norm of each column of the weight: (groups, columns)."""
    return np.asarray(np.square(layer.consumer.matrices()).sum(axis=1))


def summed(group: Group, evidence: Evidence, value: object) -> np.ndarray:
    """Sum per slot over the readers, each normalised to mean 1; magnitudes where no reader has statistics."""
    assert callable(value)
    total = np.zeros(group.size)
    layers = list(evidence.stats.of(group.atom)) if evidence.stats is not None else []
    for layer in layers:
        owners, values = layer.owners(group.atom), np.asarray(value(layer))
        seen = owners >= 0
        sums = np.bincount(owners[seen], weights=values[seen], minlength=group.size)
        mean = float(np.nan_to_num(sums).mean())
        if mean > 0:
            total += np.nan_to_num(sums, nan=np.inf) / mean
    return total if total.any() else l2(group, evidence)
