"""The search to a goal: which levers are pulled, and how far.

A ratio is what the allocator understands; a user wants 5 ms. So models are made and measured, a few for each way of
making them (a family: types, layers, tokens, or none of these, each with a ratio besides), and the ratio is corrected
until what was asked for is met. Of what meets it the trial that loses least is taken. A family ends as soon as it has
lost more than the best that is known and is still too slow: more removal only loses more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from sparsecc.decide.goals import NEAR, Goal, Trial
from sparsecc.errors import GoalError, InputError

TRIALS = 7
"""How many models a family may make."""
MOST = 14
"""How many models a search may make."""
LARGEST = 0.97
"""The largest ratio that is tried."""
SLACK = math.log(1.08)
"""What is faster than asked by more than this may give speed back for less loss."""
PAYS = 1.02
"""The least speed at which a change is worth having for speed alone."""
STEPS, JOINED = 3, 4
"""How often more layers may go back to float, and types and a ratio be chosen together."""
REMOVING = ("prune", "metric")
"""Options that change what a ratio removes: with nothing removed they change nothing."""
START = 0.35
"""The ratio to begin with where nothing is known of the speed."""

MET = 0.03
"""A trial that misses by no more than this is taken as what meets the goal: the end measures it again."""

_OWED = 10.0  # decibels by which types lose less than the best, so that what is lost is owed to removal
_MUCH, _LITTLE = 0.9, 0.2  # so much of x gone and so little of the way gained: the time is not that of work
_GOOD, _CLOSE = (-0.035, 0.015), 0.008

Made = TypeVar("Made")
Family = Mapping[str, Any]
"""Options of a compile besides its ratio."""
Attempt = Callable[[Family, float], Trial]
"""Makes and measures a model of a family at a ratio. InputError or GoalError where the family has none, EndedError
where no more are made."""


class EndedError(GoalError):
    """The user ended the search: what was tried until then settles it."""


@dataclass(frozen=True)
class Settled:
    """The end of a search: the trial to compile as, every trial, what is in the way, how far it is off."""

    best: Trial
    trials: tuple[Trial, ...]
    notes: tuple[str, ...] = ()
    excess: float = 0.0

    @property
    def ratio(self) -> float:
        return self.best.ratio


@dataclass
class Search:
    """One search. `families` are tried in turn, then the first in a form that loses less, then each of `more` together
    with the levers of the best so far.

    `finer` is the family that gives back the speed of a trial that nobody asked for, `safer` that of its levers where
    they lose least, if there are such; `together` says which types and ratio should lose least by what trials have
    shown (`joint_levers.py`); `is_over` ends the search once something meets the goal, `is_late` whatever was
    found. `ceiling` is the largest ratio allowed (`--ratio`), `keeps_all` says of a family that nothing may be removed
    besides, `orders` that options make all models smaller. `refused` says why families had no model.
    """

    goal: Goal
    attempt: Attempt
    families: Sequence[Family] = ({},)
    more: Sequence[Family] = ()
    ceiling: float | None = None
    keeps_all: Callable[[Family], bool] = lambda _: False
    orders: bool = False
    finer: Callable[[Trial], Family | None] = lambda _: None
    safer: Callable[[Trial], Family | None] = lambda _: None
    together: Callable[[Sequence[Trial]], tuple[Family, float] | None] = lambda _: None
    is_over: Callable[[], bool] = lambda: False
    is_late: Callable[[], bool] = lambda: False
    trials: list[Trial] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)

    def settle(self) -> Settled:
        """The trial that meets the goal and loses least, or comes nearest. InputError or GoalError where no family
        has any model."""
        for number, family in enumerate(self._ways()):
            if number and self._has_ended():
                break
            try:
                (self._reach if self.goal.has_target else self._farthest)(family)
            except EndedError:
                if not self.trials:
                    raise
                break
            except (InputError, GoalError) as e:
                self.refused.append(str(e))
                if number + 1 == len(self.families) and not self.trials:
                    raise
        if not self.goal.has_target:
            return self._fastest()
        best = self._best()
        excess = self.goal.excess(best)
        if self.goal.loses_too_much(best):
            return self._held_back(best)
        notes = () if excess <= NEAR else (self.goal.short(best, excess),)
        return Settled(best, tuple(self.trials), notes, excess)

    def _has_ended(self) -> bool:
        """Whether no more models are made: there are enough, or the time is over."""
        is_over = self.is_late() or (self.is_over() and bool(self._within()))
        return bool(self.trials) and (is_over or len(self.trials) >= MOST)

    def _ways(self) -> Iterator[Family]:
        """The families in turn; each is made when the one before has been tried."""
        for family in self.families:
            if not any(t.levers == family and t.ratio > 0 for t in self._within()):
                yield family  # else it was reached together with types
        whole = [t for t in self.trials if t.ratio == 0 and t.levers and not self.goal.loses_too_much(t)]
        safer = self.safer(whole[0]) if self.goal.has_target and whole else None
        tried = [t for t in self.trials if t.levers == safer and (t.ratio > 0 or self.goal.excess(t) <= NEAR)]
        if safer is not None and not tried:
            best = self._best()
            if best.ratio == 0 or whole[0].merit[1] < best.merit[1] + _OWED:
                yield safer
        for family in self.more:
            if not self.trials:
                yield family
                continue
            best = self._best()
            if self._within() and best.ratio == 0:
                return  # nothing was removed that others could save
            yield {**best.levers, **family}

    def _try(self, family: Family, ratio: float) -> Trial:
        trial = self.attempt(family, ratio)
        self.trials.append(trial)
        return trial

    def _within(self) -> list[Trial]:
        """Trials that meet the goal: exactly, or where none does, nearly."""
        kept = [t for t in self.trials if not self.goal.loses_too_much(t)]
        exactly = [t for t in kept if self.goal.excess(t) <= MET]
        return exactly or [t for t in kept if self.goal.excess(t) <= NEAR]

    def _best(self) -> Trial:
        """Of the trials that meet the goal the one that loses least; where none does the nearest."""
        within = self._within()
        return max(within, key=lambda t: t.merit) if within else self._nearest()

    def _nearest(self) -> Trial:
        """The least over among those that do not lose too much; the smallest loss where all do."""
        kept = [t for t in self.trials if not self.goal.loses_too_much(t)]
        if kept and min(map(self.goal.excess, kept)) > NEAR and len(kept) < len(self.trials):
            reached = [t for t in self.trials if self.goal.excess(t) <= NEAR]
            return max(reached, key=lambda t: t.merit) if reached else min(kept, key=self.goal.excess)
        return min(kept, key=self.goal.excess) if kept else max(self.trials, key=lambda t: t.merit)

    def _is_beaten(self, trial: Trial) -> bool:
        """Whether what meets the goal already loses less."""
        return any(known.merit > trial.merit for known in self._within())

    # To a target

    def _reach(self, family: Family) -> None:
        """The smallest ratio of a family that meets the target. The search runs over x = -ln(1 - ratio)."""
        start = self._with_nothing_removed(family)
        keeps_all = self.keeps_all(family)
        if keeps_all or (family and start is None):
            whole = self._alone(family)
            start = self.goal.excess(whole)
            if self.goal.loses_too_much(whole):
                self._instead(self._untried(self.safer(whole)), self._reach)
                return
            if start <= -SLACK:
                self._give_back(whole)
                self._join(keeps_all=keeps_all)
                return
            is_known = self._has_ended() or self.together(self.trials) is not None
            part = None if is_known else self._instead(self.safer(whole), self._alone)
            if self._join(keeps_all=keeps_all) and self._within():
                return
            if part is not None and part.merit > whole.merit:
                if self.goal.excess(part) <= NEAR:
                    return
                if self.goal.excess(part) <= max(start, NEAR + SLACK):
                    family, whole, start = part.levers, part, self.goal.excess(part)
            if start <= NEAR or self._has_ended() or (whole.is_exact and len(self.families) > 1):
                return
            if start >= self.goal.excess_of_dense(whole) and self.goal.is_timed:
                return  # slower than without it
            if self._is_beaten(whole) or keeps_all:
                return
        known: list[Trial] = []
        low, high = (0.0, math.inf), (math.inf, -math.inf)
        x = self._first(start, by_time=family.get("metric") == "latency")
        while len(known) < TRIALS and not (known and self._has_ended()):
            trial = self._try(family, -math.expm1(-x))
            known.append(trial)
            off, base = self.goal.excess(trial), start
            base = self.goal.excess_of_dense(trial) if base is None else base
            if base <= 0:
                self._try(family, 0.0)
                return
            lost = self.goal.loses_too_much(trial) or self._is_beaten(trial)
            is_vain = x > _MUCH and base - off < _LITTLE * base
            if _GOOD[0] <= off <= _GOOD[1] or (off > 0 and (lost or is_vain)):
                return
            if low[0] == 0.0:
                low = (0.0, base)
            if off > 0:
                low = (x, off)
            else:
                high = (x, off)
            if (off > 0 and trial.exhausted) or x >= self._last or high[0] - low[0] < _CLOSE:
                return
            x = min(self._last, _next(low, high, base))

    def _with_nothing_removed(self, family: Family) -> float | None:
        """The excess at ratio 0 of a family that removes otherwise (layers too, by another metric): it is that of the
        family without. None for other families, and where options remove something besides the ratio."""
        rest = {name: value for name, value in family.items() if name not in REMOVING}
        if self.orders or len(rest) == len(family):
            return None
        same = [t for t in self.trials if t.levers == rest and t.ratio == 0]
        found = [self.goal.excess(t) for t in same] or [self.goal.excess_of_dense(t) for t in self.trials]
        return found[0] if found else None

    def _untried(self, family: Family | None) -> Family | None:
        return None if any(t.levers == family for t in self.trials) else family

    def _give_back(self, whole: Trial) -> None:
        """Speed that nobody asked for: layers that lose most go back to float, step by step for as long as there is
        such speed and that helps; then types at the very speed."""
        trial: Trial | None = whole
        for _ in range(STEPS):
            if trial is None or self.goal.excess(trial) > -SLACK or self.is_over():
                break
            before, trial = trial, self._instead(self.safer(trial), self._alone)
            if trial is not None and trial.merit <= before.merit:
                break
        if self.goal.excess(whole) <= -SLACK and not self.is_over():
            self._instead(self.finer(whole), self._alone)

    def _join(self, *, keeps_all: bool) -> bool:
        """Types and a ratio that are chosen together, for as long as that promises less loss; whether any were."""
        for number in range(JOINED):
            point = None if self._has_ended() else self.together(self.trials)
            if point is None or (keeps_all and point[1]) or point[1] > -math.expm1(-self._last):
                return number > 0
            self._instead(point[0], partial(self._try, ratio=point[1]))
        return True

    def _alone(self, family: Family) -> Trial:
        """A family with nothing removed besides."""
        known = [t for t in self.trials if t.levers == family and t.ratio == 0]
        return known[0] if known else self._try(family, 0.0)

    def _instead(self, family: Family | None, tried: Callable[[Family], Made]) -> Made | None:
        """A family that takes the place of another is tried, where there is one that has a model."""
        try:
            return None if family is None else tried(family)
        except EndedError:
            raise
        except (InputError, GoalError) as e:
            self.refused.append(str(e))
            return None

    @property
    def _last(self) -> float:
        return -math.log1p(-min(self.ceiling or LARGEST, LARGEST))

    def _first(self, start: float | None, *, by_time: bool = False) -> float:
        """Where a family starts: where the slope of an earlier one says, else the share of the work that the excess
        implies, or of the time, which that is."""
        if start is None:
            speedup = self.goal.speedup
            start = math.log(speedup) if speedup is not None else -math.log1p(-START)
        slopes = [
            (self.goal.excess_of_dense(t) - self.goal.excess(t)) / -math.log1p(-t.ratio)
            for t in self.trials
            if t.ratio > 0.02 and not t.levers and not by_time
        ]
        slope = min(2.0, max(0.25, slopes[-1])) if slopes and slopes[-1] > 0 else 1.0
        return min(self._last, max(_CLOSE, start / slope))

    def _held_back(self, best: Trial) -> Settled:
        """What reaches the target loses too much: of what does not, the nearest, its family halved towards that."""
        if best.ratio == 0:  # what is removed can be halved, types cannot
            removing = [t for t in self.trials if t.ratio > 0 and self.goal.loses_too_much(t)]
            best = max(removing, key=lambda t: t.merit, default=best)
        low, high = 0.0, -math.log1p(-best.ratio)
        for _ in range(TRIALS):
            if high - low < 0.02 or len(self.trials) >= MOST or self.is_late():
                break
            try:
                trial = self._try(best.levers, -math.expm1(-(low + high) / 2))
            except EndedError:
                break
            if self.goal.loses_too_much(trial):
                high = -math.log1p(-trial.ratio)
            else:
                low = -math.log1p(-trial.ratio)
                if trial.exhausted:
                    break
        kept = [t for t in self.trials if not self.goal.loses_too_much(t)]
        lost = [t for t in self.trials if self.goal.loses_too_much(t)]
        known: dict[str, Any] = {"dense_ms": best.dense_ms, "memory": best.dense_memory, "kv": best.dense_kv}
        whole = Trial(0.0, 0.0, best.dense_bytes, best.dense_bytes, speedup=1.0, **known)
        nearest = min([whole, *kept], key=self.goal.excess)
        off = math.inf if nearest is whole and self.orders else self.goal.excess(nearest)
        return Settled(
            nearest, tuple(self.trials), (self._between(nearest, min(lost, key=self.goal.excess)),), off
        )

    def _between(self, kept: Trial, lost: Trial) -> str:
        """The nearest on either side, and what may bring them together."""
        goal, limits = self.goal.words(), self.goal.words(limits_only=True)
        so_far = (
            f"the nearest is {kept.words()}"
            if kept.levers or kept.ratio
            else "nothing that was tried and keeps enough is near"
        )
        what = f"against {limits}" if limits else "to be of use"
        return (
            f"{goal} is out of reach: {so_far}; {lost.words()} loses too much {what}: more samples, or training with "
            "--recover distill, may bring it nearer"
        )

    # Within limits

    def _farthest(self, family: Family) -> None:
        """The largest ratio of a family that keeps the limits, by halving."""
        if family or self.keeps_all(family):
            whole = self._try(family, 0.0)
            if self.goal.loses_too_much(whole):
                self._instead(self._untried(self.safer(whole)), self._farthest)
                return
            if self.keeps_all(family):
                return
        low, high = 0.0, self._last
        x = min(high, -math.log1p(-0.5))
        for _ in range(TRIALS):
            trial = self._try(family, -math.expm1(-x))
            if self.goal.loses_too_much(trial):
                high = x
            else:
                low = x
                if trial.exhausted:
                    break
            if high - low < 0.02 or low >= high or self._has_ended():
                break
            x = (low + high) / 2

    def _fastest(self) -> Settled:
        """The fastest that keeps the limits, the model as it is where nothing is surely faster; the smallest where
        nothing was timed."""
        some = self.trials[0]
        whole = Trial(0.0, 0.0, some.dense_bytes, some.dense_bytes, speedup=PAYS, dense_ms=some.dense_ms)
        kept = [whole, *(t for t in self.trials if not self.goal.loses_too_much(t))]
        best = max(kept, key=lambda t: (t.speedup or PAYS, -t.bytes, t.ratio))
        return Settled(best, tuple(self.trials), self._kept_up_to(best.ratio))

    def _kept_up_to(self, ratio: float) -> tuple[str, ...]:
        lost = [t for t in self.trials if self.goal.loses_too_much(t)]
        if not lost:
            return ()
        nearest = min(lost, key=lambda t: t.ratio)
        limits = self.goal.words(limits_only=True)
        note = f"{limits} is kept up to ratio {ratio:.3f}"
        if nearest.score is not None and nearest.dense_score is not None:
            note += f"; at {nearest.ratio:.3f} the loss is {nearest.dense_score - nearest.score:.4g}"
        elif nearest.quality_db is not None:
            note += f"; {nearest.words()}"
        return (note,)


def _next(low: tuple[float, float], high: tuple[float, float], start: float) -> float:
    """Where the line through both ends crosses zero, near to neither; further on while there is no high."""
    if math.isinf(high[0]):
        gained = start - low[1]
        ahead = low[0] * start / gained if gained > 0.02 else 2 * low[0]
        return min(-math.log1p(-LARGEST), max(1.1 * low[0], min(ahead, 2.5 * low[0])))
    width = high[0] - low[0]
    crossing = low[0] + width * low[1] / (low[1] - high[1])
    return min(high[0] - 0.15 * width, max(low[0] + 0.15 * width, crossing))
