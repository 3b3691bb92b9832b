"""What a criterion may look at."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from sparsecc.axes.algebra import Atom
from sparsecc.calibrate.channels import Measure
from sparsecc.calibrate.layer_statistics import Stats
from sparsecc.criteria.weights import SlotWeights


@dataclass(frozen=True)
class Evidence:
    """The weights slot by slot and, where there are samples, the statistics of every layer's inputs.

    `gradients` gives the scores of all groups by a gradient criterion, `channels` a measure of each channel of
    the layers' inputs.
    """

    weights: SlotWeights
    stats: Stats | None = None
    gradients: Callable[[str], Mapping[Atom, np.ndarray]] | None = None
    channels: Callable[[Measure], Mapping[str, np.ndarray]] | None = None
