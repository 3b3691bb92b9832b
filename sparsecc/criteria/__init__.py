"""How much each slot of a group matters. One file per family, one row per method."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from sparsecc.criteria import activation, clusters, experts, gradient, magnitude, mass, obs, rank, relative
from sparsecc.criteria.evidence import Evidence
from sparsecc.errors import unknown
from sparsecc.graph.groups import Group

Score = Callable[[Group, Evidence], np.ndarray]
"""(group, evidence) -> one score per slot, larger = keep. Shape (group.size,), float64."""


@dataclass(frozen=True)
class Criterion:
    """A score, whether it needs calibration statistics, and whether a general set of samples besides."""

    score: Score
    needs_data: bool = False
    needs_general: bool = False


CRITERIA: Mapping[str, Criterion] = {
    "l1": Criterion(magnitude.l1),
    "l2": Criterion(magnitude.l2),
    "lamp": Criterion(magnitude.lamp),
    "bn_scale": Criterion(magnitude.bn_scale),
    "fpgm": Criterion(magnitude.fpgm),
    "random": Criterion(magnitude.random),
    "first": Criterion(magnitude.first),
    "act_norm": Criterion(activation.act_norm, needs_data=True),
    "act_mass": Criterion(mass.act_mass, needs_data=True),
    "feature_rank": Criterion(rank.feature_rank, needs_data=True),
    "wanda": Criterion(activation.wanda, needs_data=True),
    "fluctuation": Criterion(activation.fluctuation, needs_data=True),
    "cfsp": Criterion(relative.cfsp, needs_data=True),
    "beta_rank": Criterion(relative.beta_rank, needs_data=True),
    "obs": Criterion(obs.obs, needs_data=True),
    "expert_frequency": Criterion(experts.expert_frequency, needs_data=True),
    "expert_gate": Criterion(experts.expert_gate, needs_data=True),
    "reap": Criterion(experts.reap, needs_data=True),
    "tcess": Criterion(experts.tcess, needs_data=True),
    "camera": Criterion(experts.camera, needs_data=True),
    "stun": Criterion(clusters.stun, needs_data=True),
    **{name: Criterion(gradient.by_gradients(name), needs_data=True) for name in gradient.NAMES},
    **{
        name: Criterion(gradient.by_gradients(name), True, needs_general=True)
        for name in gradient.OF_TWO_SETS
    },
}
WITH_DATA, WITHOUT_DATA = "obs", "lamp"
"""What `auto` means with and without calibration samples."""
FOR_EXPERTS = "expert_gate"
"""What `auto` means for experts, with samples."""
FOR_THRESHOLDS = "fluctuation"
"""What `auto` means with samples but without loss curves: its scores stand a global threshold better."""


def criterion_named(name: str, *, has_data: bool = False) -> Criterion:
    """The criterion of that name; `auto` is the best there is data for. InputError names the closest one."""
    if name == "auto":
        name = WITH_DATA if has_data else WITHOUT_DATA
    if name not in CRITERIA:
        raise unknown("criterion", "criteria", name, ("auto", *CRITERIA))
    return CRITERIA[name]
