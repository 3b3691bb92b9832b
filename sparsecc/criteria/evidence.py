"""What a criterion may look at."""

from __future__ import annotations

from dataclasses import dataclass

from sparsecc.calibrate.stats import Stats
from sparsecc.criteria.weights import SlotWeights


@dataclass(frozen=True)
class Evidence:
    """The weights slot by slot and, where there are samples, the statistics of every layer's inputs."""

    weights: SlotWeights
    stats: Stats | None = None
