"""Types as levers of a search: all layers in 8 bits, those without the layers that lose most, types by a speed."""

from __future__ import annotations

from sparsecc.decide.goal_search import Family
from sparsecc.decide.goals import Goal, Trial
from sparsecc.loss.judge import DOUBTFUL_DB

INT8: Family = {"quantize": "int8"}
AIM = 1.02
"""How much more speed is asked of a choice of types than is to be reached: it is timed again afterwards."""
_MARGIN = 2.0
"""Decibels that a choice of types is asked for above what is to be left: it is made on other samples."""
_BETTER = 3.0
"""Decibels by which 8 bits in part are to be better than in all layers."""


def at_speed(speedup: float) -> Family:
    """The types of least loss that run so many times as fast."""
    return {"quantize": "mixed", "quantize_options": {"speedup": f"{speedup:.3f}"}}


def in_part(goal: Goal, trial: Trial) -> Family | None:
    """8 bits without the layers that lose most: so many that the rest is of use, or clearly better than the trial.
    None unless that is one of 8 bits, in all layers or in part, and was judged to lose something."""
    part = set(trial.levers.get("quantize_options", {})) - {"max_drop"}
    if trial.levers.get("quantize") != "int8" or part or trial.quality_db is None or trial.ratio:
        return None
    if trial.is_exact:
        return None
    least = max(goal.min_quality or DOUBTFUL_DB, trial.quality_db)
    wanted = least + (_MARGIN if goal.loses_too_much(trial) else _BETTER)
    return {**trial.levers, "quantize_options": {"max_drop": f"{10 ** (-wanted / 10):.3g}"}}
