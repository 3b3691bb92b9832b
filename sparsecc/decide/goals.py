"""Budgets that only a measurement can tell (faster, smaller, less accurate): the search for a ratio.

A ratio is what the allocator understands; a user wants 5 ms. So models are made at a few ratios and measured,
and the ratio is corrected until what was asked for is met.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from sparsecc.errors import InputError
from sparsecc.options import CompileOptions, rows_of

TRIALS = 7
"""How many models a search may make."""
NEAR = math.log(1.05)
"""A target is met within 5 %."""
REFUSED = math.log(1.25)
"""What stays further than this from its target is not written."""
LARGEST = 0.97
"""The largest ratio that is tried."""

_GOOD = (-0.035, 0.015)
_CLOSE = 0.008
_ROWS = {name: row for name, row in rows_of(CompileOptions).items() if row.is_goal}


@dataclass(frozen=True)
class Trial:
    """A model that was made at a ratio, and what was measured of it.

    `speedup` is that over the dense model, `ms` and `dense_ms` the medians of both by the same clock; `memory`
    and `dense_memory` the bytes that loading and running adds to a process; `score` and `dense_score` are those
    of `--evaluate`. None where it was not measured. `exhausted` says that nothing more can be removed, `held` why.
    """

    ratio: float
    removed: float
    bytes: int
    dense_bytes: int
    exhausted: bool = False
    held: str = ""
    speedup: float | None = None
    ci95: tuple[float, float] | None = None
    ms: float | None = None
    dense_ms: float | None = None
    memory: int | None = None
    dense_memory: int | None = None
    score: float | None = None
    dense_score: float | None = None

    def to_json(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if value is not None}


Attempt = Callable[[float], Trial]
"""Makes and measures a model at a ratio."""


@dataclass(frozen=True)
class Goal:
    """What was asked: times faster, milliseconds a run, runs a second, bytes of model, bytes of memory to load
    and run it, loss of accuracy."""

    speedup: float | None = None
    latency: float | None = None
    fps: float | None = None
    size: float | None = None
    footprint: float | None = None
    max_drop: float | None = None

    @staticmethod
    def of(options: CompileOptions) -> Goal | None:
        """The goal among the options. InputError where one cannot be measured."""
        given = {name: getattr(options, name) for name in _ROWS if getattr(options, name) is not None}
        if options.mixes_types:
            given.pop("size", None)  # types are chosen for it, not what is removed
        if not given:
            return None
        if "footprint" in given and options.device != "local":
            raise InputError(f"--footprint is measured on this machine: leave out --device {options.device}")
        for name in ("speedup", "latency", "fps", "footprint"):
            if name in given and not options.measure:
                raise InputError(f"{_ROWS[name].flag} needs the measurement: leave out --no-measure")
        return Goal(**given)

    @property
    def asked(self) -> dict[str, float]:
        return {name: value for name, value in asdict(self).items() if value is not None}

    @property
    def is_timed(self) -> bool:
        return any(value is not None for value in (self.speedup, self.latency, self.fps))

    @property
    def has_target(self) -> bool:
        """Whether a smallest ratio is wanted; with `max_drop` alone the largest is."""
        return self.is_timed or self.size is not None or self.footprint is not None

    @property
    def first_ratio(self) -> float:
        """Where the search starts: the share of the work that the speed-up implies."""
        return 0.35 if self.speedup is None else min(LARGEST, 1 - 1 / self.speedup)

    @property
    def milliseconds(self) -> float | None:
        """The longest that a run may take."""
        return 1e3 / self.fps if self.fps is not None else self.latency

    def excess(self, trial: Trial) -> float:
        """ln of how much too slow or too large a trial is; zero or less is what was asked for."""
        over = [-math.inf]
        if self.size is not None:
            over.append(math.log(trial.bytes / self.size))
        if self.footprint is not None and trial.memory is not None:
            over.append(math.log(max(trial.memory, 1) / self.footprint))
        if self.speedup is not None and trial.speedup is not None:
            over.append(math.log(self.speedup / trial.speedup))
        limit = self.milliseconds
        if limit is not None and trial.speedup is not None and trial.dense_ms is not None:
            over.append(math.log(trial.dense_ms / trial.speedup / limit))
        return max(over)

    def excess_of_dense(self, trial: Trial) -> float:
        """The same of the dense model that a trial was measured against."""
        dense = Trial(0, 0, trial.dense_bytes, trial.dense_bytes, speedup=1.0, dense_ms=trial.dense_ms)
        return self.excess(replace(dense, memory=trial.dense_memory))

    def loses_too_much(self, trial: Trial) -> bool:
        if self.max_drop is None or trial.score is None or trial.dense_score is None:
            return False
        return trial.dense_score - trial.score > self.max_drop + 1e-12

    def words(self) -> str:
        """`--speedup 2, --max-drop 0.01`."""
        return ", ".join(f"{_ROWS[name].flag} {_number(value)}" for name, value in self.asked.items())


def _number(value: float) -> str:
    """Bytes are whole numbers and may be many."""
    return f"{value:.0f}" if value == int(value) else f"{value:g}"


@dataclass(frozen=True)
class Settled:
    """The end of a search: the ratio to compile at, every trial, what is in the way, how far it is off."""

    ratio: float
    trials: tuple[Trial, ...]
    notes: tuple[str, ...] = ()
    excess: float = 0.0


def settle(goal: Goal, attempt: Attempt, ceiling: float | None = None) -> Settled:
    """The smallest ratio that meets the targets, or with `max_drop` alone the largest that loses no more.

    At most `TRIALS` models are made for either. `ceiling` is the largest ratio allowed (`--ratio`).
    """
    if not goal.has_target:
        return _within_drop(goal, attempt, ceiling or LARGEST, ())
    trials, excess = _meet(goal, attempt)
    best = trials[-1]
    notes = () if excess <= NEAR else (_short(goal, best, excess),)
    found = Settled(best.ratio, tuple(trials), notes, excess)
    if not goal.loses_too_much(best):
        return found
    held = _within_drop(goal, attempt, best.ratio, found.trials)
    kept = next((t for t in reversed(held.trials) if t.ratio == held.ratio), None)
    off = goal.excess(kept) if kept is not None else goal.excess_of_dense(best)
    return Settled(held.ratio, held.trials, (*held.notes, *((_short(goal, kept, off),) if kept else ())), off)


def _meet(goal: Goal, attempt: Attempt) -> tuple[list[Trial], float]:
    """Trials, the best one last, and how far it is off. The search runs over x = -ln(1 - ratio)."""
    trials: list[Trial] = []
    low, high = (0.0, math.inf), (math.inf, -math.inf)
    x = -math.log1p(-goal.first_ratio)
    while len(trials) < TRIALS:
        trial = attempt(-math.expm1(-x))
        trials.append(trial)
        off, start = goal.excess(trial), goal.excess_of_dense(trial)
        if start <= 0:
            return [*trials, attempt(0.0)], start
        if _GOOD[0] <= off <= _GOOD[1]:
            break
        if low[0] == 0.0:
            low = (0.0, start)
        if off > 0:
            low = (x, off)
        else:
            high = (x, off)
        if (off > 0 and trial.exhausted) or x >= -math.log1p(-LARGEST) or high[0] - low[0] < _CLOSE:
            break
        x = _next(low, high, start)
    best = _best(goal, trials)
    return [t for t in trials if t is not best] + [best], goal.excess(best)


def _next(low: tuple[float, float], high: tuple[float, float], start: float) -> float:
    """Where the line through both ends crosses zero, near to neither; further on while there is no high."""
    if math.isinf(high[0]):
        gained = start - low[1]
        ahead = low[0] * start / gained if gained > 0.02 else 2 * low[0]
        return min(-math.log1p(-LARGEST), max(1.1 * low[0], min(ahead, 2.5 * low[0])))
    width = high[0] - low[0]
    crossing = low[0] + width * low[1] / (low[1] - high[1])
    return min(high[0] - 0.15 * width, max(low[0] + 0.15 * width, crossing))


def _best(goal: Goal, trials: list[Trial]) -> Trial:
    """The nearest when it is within 5 %, else the smallest ratio that is fast enough, else the fastest."""
    nearest = min(trials, key=lambda t: abs(goal.excess(t)))
    enough = [t for t in trials if goal.excess(t) <= 0]
    if abs(goal.excess(nearest)) <= NEAR or not enough:
        return nearest if enough else min(trials, key=goal.excess)
    return min(enough, key=lambda t: t.ratio)


def _within_drop(goal: Goal, attempt: Attempt, top: float, before: tuple[Trial, ...]) -> Settled:
    """The largest ratio up to `top` that loses no more than allowed, by halving."""
    trials = list(before)
    low, high = 0.0, -math.log1p(-top)
    tried, x = 0, high if before else min(high, -math.log1p(-0.5))
    if before:
        x = high / 2
    while tried < TRIALS:
        trial = attempt(-math.expm1(-x))
        trials.append(trial)
        tried += 1
        if goal.loses_too_much(trial):
            high = x
        else:
            low = x
            if trial.exhausted:
                break
        if high - low < 0.02 or (low >= high and not before):
            break
        x = (low + high) / 2
    ratio = -math.expm1(-low)
    lost = next((t for t in trials if goal.loses_too_much(t)), None)
    note = f"--max-drop {goal.max_drop:g} is kept up to ratio {ratio:.3f}"
    if lost is not None and lost.score is not None and lost.dense_score is not None:
        note += f"; at {lost.ratio:.3f} the loss is {lost.dense_score - lost.score:.4g}"
    return Settled(ratio, tuple(trials), (note,) if lost is not None else ())


def _short(goal: Goal, best: Trial, excess: float) -> str:
    """What was reached instead, and what holds it back."""
    reached = [f"{best.speedup:.2f}x"] if best.speedup is not None else []
    if goal.milliseconds is not None and best.dense_ms is not None and best.speedup is not None:
        reached.append(f"{best.dense_ms / best.speedup:.3g} ms")
    if goal.size is not None:
        reached.append(f"{best.bytes:,} bytes")
    if goal.footprint is not None and best.memory is not None:
        reached.append(f"{best.memory:,} bytes of memory")
    held = f": {best.held}" if best.held else ""
    far = f" {math.expm1(excess):.0%}" if excess < math.log(10) else ""
    return (
        f"{goal.words()} is{far} out of reach: the best is "
        f"{', '.join(reached)} with {best.removed:.1%} removed{held}"
    )


def judge(goal: Mapping[str, Any], measured: Mapping[str, Any]) -> dict[str, Any]:
    """What the final measurement says of a goal: asked, found, and whether it is met within 5 %."""
    asked = Goal(**goal["asked"])
    latency = measured.get("latency")
    found = Trial(0, 0, measured["bytes"]["after"], measured["bytes"]["before"])
    if latency is not None:
        speedup = float(latency["speedup"]["estimate"])
        dense = float(latency["before_ms"]["p50"])
        found = replace(found, speedup=speedup, dense_ms=dense, ms=dense / speedup)
    if asked.footprint is not None:
        found = replace(found, memory=measured["footprint"]["after"]["model_memory_bytes"])
    excess = asked.excess(found)
    return {
        "asked": asked.asked,
        "met": excess <= NEAR,
        "excess": None if math.isinf(excess) else math.expm1(excess),
    }
