"""8 bits in part and a little removed, chosen together: the least loss in all that is fast enough.

Neither lever alone says how far to pull the other: layers that lose most in 8 bits are cheap to keep in float where
the time that they take is cheap to remove. Of types, there are the levels of loss that single layers' errors sum to,
and the share of work that then stays in 8 bits, whose time goes on from those that were measured. Removal has a time
that falls with the work and a loss that grows with the square of what goes (the second order of "Optimal Brain
Surgeon", Hassibi & Stork, 1993), both fitted through the last trial. Losses of both add up, times multiply; the
program over the levels is solved again after every trial, so that what was only foreseen is corrected where it counts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sparsecc.decide.goal_search import MET, Family
from sparsecc.decide.goals import Goal, Trial
from sparsecc.decide.type_levers import INT8

SLOPE, CURVATURE = 0.7, 0.3
"""Of a removal that no trial has shown yet: ln of the time, and the loss, over x = -ln(1 - ratio) and its square."""
WORTH = 0.9
"""The share of the least loss so far under which another trial is worth making."""
LEAST, CLOSE = 0.03, 0.01
"""The least x that removes anything, and how near ratios are that are one."""
SLOPES, LIKELY = (0.25, 2.0), (0.4, 1.0)
"""Bounds of the slope, which short timings tell badly, and those of one that was not measured alone."""
MUCH = 0.3
"""The share of a loss that 8 bits in all layers may be owed before others are tried."""
APART = 0.2
"""ln of the losses of levels that are two."""
LITTLE = 0.05
"""The least share of a loss that is owed to what was removed."""


@dataclass(frozen=True)
class Level:
    """8 bits in all layers or in part: what that loses, and ln of its time over that of float."""

    family: Family
    loss: float
    time: float


@dataclass(frozen=True)
class Removal:
    """What removing x = -ln(1 - ratio) of the work saves of ln of the time, and loses."""

    slope: float = SLOPE
    curvature: float = CURVATURE

    def needed(self, time: float) -> float:
        """x to save so much of ln of the time; 0 where that is next to nothing."""
        x = time / self.slope
        return max(x, LEAST) if x > LEAST / 3 else 0.0

    def loss(self, x: float) -> float:
        return self.curvature * x * x


def next_together(goal: Goal, trials: Sequence[Trial]) -> tuple[Family, float] | None:
    """The types and the ratio that should meet a goal of time at the least loss, by all that trials have shown, float
    being one of the types; None where it matters what 8 bits in part lose and no trial has shown it, or nothing
    clearly better than the best of them is foreseen."""
    known = _Known.of(goal, trials)
    if known is None:
        return None
    removals, wanted = {kind: known.removal(kind) for kind in (True, False)}, goal.excess_of_dense(trials[0])
    options = []
    for level in [Level({}, 0.0, 0.0), *known.levels(removals[True])]:
        removal = removals[bool(level.family)]
        x = removal.needed(wanted + level.time)
        options.append((level.loss + removal.loss(x), level.loss, level.family, round(-math.expm1(-x), 4)))
    loss, owed, family, ratio = min(options, key=lambda option: option[0])
    if not known.foreseen and owed > MUCH * loss:
        return None  # 8 bits in part may be better: one is to be tried
    is_tried = any(t.levers == family and abs(t.ratio - ratio) < CLOSE for t in trials)
    met = [_loss(t) for t in trials if goal.excess(t) <= MET and not goal.loses_too_much(t)]
    return None if is_tried or (met and loss > WORTH * min(met)) else (family, ratio)


@dataclass(frozen=True)
class _Known:
    """What trials have shown: `alone` are those of 8 bits with nothing removed, where types changed something,
    `removed` those with something, of 8 bits or of float; `foreseen` the levels of the first in part, whose losses
    times `scale` are those that judge."""

    goal: Goal
    alone: Sequence[Trial]
    removed: Sequence[Trial]
    foreseen: Sequence[tuple[float, float]]
    scale: float

    @staticmethod
    def of(goal: Goal, trials: Sequence[Trial]) -> _Known | None:
        judged = [t for t in trials if t.quality_db is not None and (not t.levers or _is_in_bytes(t.levers))]
        alone = [t for t in judged if t.ratio == 0 and t.levers and not t.is_exact]
        foreseen = next((t.levels for t in alone if t.levels and t.levels[0][0] > 0), ())
        if not alone:
            return None
        removed = [t for t in judged if t.ratio > CLOSE]
        # single layers' errors were measured on other samples, as a mean over parts
        scale = _loss(alone[0]) / foreseen[0][0] if foreseen else 1.0
        return _Known(goal, alone, removed, foreseen, scale)

    def removal(self, in_bytes: bool) -> Removal:
        """From 8 bits or from float, through the last trial of that; the loss, and from 8 bits the slope, of one of
        the other where there is none. Where the time without that is only foreseen, an unlikely slope is owed to it
        instead (`_times`)."""
        found = Removal()
        for trial in sorted(self.removed, key=lambda t: bool(t.levers) == in_bytes):
            x, whole = -math.log1p(-trial.ratio), self._whole(trial.levers)
            low, high = SLOPES if self._is_tried(trial.levers) else LIKELY
            slope = min(high, max(low, (whole.time - _time(self.goal, trial)) / x))
            lost = max(_loss(trial) - whole.loss, LITTLE * _loss(trial))
            found = Removal(SLOPE if trial.levers and not in_bytes else slope, lost / (x * x))
        return found

    def levels(self, removal: Removal) -> list[Level]:
        """Those that were tried with nothing removed, and those between and below them that are foreseen."""
        tried = [Level(t.levers, _loss(t), _time(self.goal, t)) for t in self.alone]
        times, levels = self._times(removal) | self._measured, list(tried)
        for loss, share in self.foreseen:
            if all(abs(math.log(loss * self.scale / max(one.loss, 1e-12))) > APART for one in tried):
                family = {**INT8, "quantize_options": {"max_drop": f"{loss:.3g}"}}
                levels.append(Level(family, loss * self.scale, math.log(_at(share, times))))
        return levels

    def _times(self, removal: Removal) -> dict[float, float]:
        """Share of the work in 8 bits -> the time relative to float, where trials have shown it; those that removed
        something show it by what that saves."""
        found = {}
        for trial in self.removed:
            if trial.levers:
                time = _time(self.goal, trial) - removal.slope * math.log1p(-trial.ratio)
                found[self._share(trial.levers)] = math.exp(time)
        return found

    @property
    def _measured(self) -> dict[float, float]:
        return {self._share(t.levers): math.exp(_time(self.goal, t)) for t in self.alone}

    def _is_tried(self, levers: Family) -> bool:
        return not levers or any(t.levers == levers for t in self.alone)

    def _whole(self, levers: Family) -> Level:
        """A way of making models with nothing removed: tried, or foreseen. That of float is the model as it came."""
        if not levers:
            return Level({}, 0.0, 0.0)
        for trial in self.alone:
            if trial.levers == levers:
                return Level(levers, _loss(trial), _time(self.goal, trial))
        loss = float(levers["quantize_options"]["max_drop"]) * self.scale
        return Level(levers, loss, math.log(_at(self._share(levers), self._measured)))

    def _share(self, levers: Family) -> float:
        """Of the work of layers that may be in 8 bits."""
        losses, shares = ([row[place] for row in reversed(self.foreseen)] for place in (0, 1))
        asked = levers.get("quantize_options", {}).get("max_drop")
        if asked is None or not shares:
            return 1.0
        return float(np.interp(math.log(float(asked)), np.log(losses), shares))


def _at(share: float, times: Mapping[float, float]) -> float:
    """Between shares that were timed in proportion; below them at the price of the last, or of all, whichever is
    dearer: a layer in float among those in 8 bits costs conversions besides."""
    known = sorted(times)
    least = known[0]
    if share >= least:
        return float(np.interp(share, known, [times[one] for one in known]))
    price = (1 - times[known[-1]]) / known[-1]
    if len(known) > 1:
        price = max(price, (times[least] - times[known[1]]) / (known[1] - least))
    return max(times[least], min(1.0, times[least] + price * (least - share)))


def _is_in_bytes(levers: Family) -> bool:
    """Whether these are 8 bits in all layers or in part, and nothing else."""
    rest = set(levers.get("quantize_options", {})) - {"max_drop"}
    return levers.get("quantize") == "int8" and set(levers) <= {"quantize", "quantize_options"} and not rest


def _loss(trial: Trial) -> float:
    """The squared error of the worst part, relative to its variance."""
    return 0.0 if trial.quality_db is None else 10 ** (-trial.quality_db / 10)


def _time(goal: Goal, trial: Trial) -> float:
    """ln of the time over that of the dense model."""
    return goal.excess(trial) - goal.excess_of_dense(trial)
