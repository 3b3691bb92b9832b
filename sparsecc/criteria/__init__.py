"""How much each slot of a group matters. One file per family, one row per method."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping

import numpy as np

from sparsecc.criteria import magnitude
from sparsecc.criteria.weights import SlotWeights
from sparsecc.errors import InputError
from sparsecc.graph.groups import Group

Criterion = Callable[[Group, SlotWeights], np.ndarray]
"""(group, weights) -> one score per slot, larger = keep. Shape (group.size,), float64."""

CRITERIA: Mapping[str, Criterion] = {
    "l1": magnitude.l1,
    "l2": magnitude.l2,
    "random": magnitude.random,
    "first": magnitude.first,
}
DEFAULT = "l2"


def criterion_named(name: str) -> Criterion:
    """The criterion of that name; `auto` is the default. InputError names the closest one."""
    if name == "auto":
        name = DEFAULT
    if name not in CRITERIA:
        close = difflib.get_close_matches(name, CRITERIA, n=1)
        hint = f"did you mean '{close[0]}'? " if close else ""
        raise InputError(f"unknown criterion '{name}': {hint}criteria are auto, {', '.join(CRITERIA)}")
    return CRITERIA[name]
