"""How much the feature maps of a channel hold: their rank as matrices.

"HRank: Filter Pruning using High-Rank Feature Map" (Lin et al., 2020): the mean rank of a channel's maps hardly
depends on the images, and channels of low rank carry little.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from sparsecc.criteria.activation import by_channel
from sparsecc.criteria.evidence import Evidence
from sparsecc.graph.groups import Group


def feature_rank(group: Group, evidence: Evidence) -> np.ndarray:
    """The mean rank of a slot's maps over the samples, as the layers that read it get them."""
    return by_channel(group, evidence, mean_rank)


def mean_rank(batches: Iterator[np.ndarray]) -> np.ndarray:
    """(channels,), float64. What has no two axes of positions has rank 0 or 1; of equal ranks more energy counts."""
    ranks, energy, number = 0.0, 0.0, 0
    for data in batches:
        maps = np.nan_to_num(np.asarray(data, dtype=np.float32))
        shape = (*maps.shape[:3], -1) if maps.ndim > 3 else (*maps.shape[:2], 1, -1)
        matrices = maps.reshape(shape)
        ranks = ranks + np.linalg.matrix_rank(matrices).sum(axis=0)
        energy = energy + np.square(matrices, dtype=np.float64).sum(axis=(0, 2, 3))
        number += len(maps)
    most = max(float(np.max(energy)), 1e-30)
    return np.asarray(ranks / number + np.asarray(energy) / most / (number + 1))
