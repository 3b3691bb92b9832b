"""The search for the whole front: the levers of a goal, each pulled as far as it pays, then between neighbours.

Points come in waves that may be made side by side: types and tokens alone, 8 bits in part and plain removal, removal
from what types are fast, layers with the best. A way of making models goes no further once its last point loses more
than one that is faster, or is of no use; plain removal goes on until then, to be seen beside the rest.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from sparsecc.decide.goal_search import LARGEST, PAYS, Family
from sparsecc.decide.goals import Goal, Trial
from sparsecc.decide.type_levers import INT8, at_speed, in_part

RATIOS = (0.2, 0.35, 0.5, 0.65)
"""What is removed in turn where no ratios are ordered."""
CLOSEST = 0.02
"""Ratios nearer than this are not told apart."""
APART = math.log(1.08)
"""Neighbours on the front whose speeds differ by more than this have room between them."""

Point = tuple[Family, float]
"""Options of a compile besides its ratio, and the ratio."""


@dataclass
class FrontSearch:
    """`families` are types and channels, `more` what may join them; `ratios`, where ordered, are tried of each of
    `families`, and nothing else but `rounds` rounds between neighbours. `trials` grows while waves are made."""

    families: Sequence[Family]
    more: Sequence[Family] = ()
    ratios: Sequence[float] | None = None
    rounds: int = 1
    times_types: bool = False
    """Whether types for each layer can be chosen by timing them."""
    removes: bool = True
    """Whether channels may go; else layers alone."""
    trials: list[Trial] = field(default_factory=list)

    def waves(self) -> Iterator[list[Point]]:
        """Points to make, wave by wave."""
        if self.ratios is not None:
            yield self._grid(self.ratios)
        else:
            yield from self._as_far_as_it_pays()
        for _ in range(self.rounds):
            yield self._new(self._between())

    def _grid(self, ratios: Sequence[float]) -> list[Point]:
        """Small ratios first, so that an interrupted search has a whole picture. Nothing removed in no other type is
        none, unless that alone is asked for."""
        points = [(family, ratio) for ratio in ratios for family in self.families]
        return [(family, ratio) for family, ratio in points if ratio or "quantize" in family] or points

    def _as_far_as_it_pays(self) -> Iterator[list[Point]]:
        plain = [family for family in self.families if "quantize" not in family]
        yield self._new([(family, 0.0) for family in (*self.families, *self.more) if _acts_alone(family)])
        yield self._new(
            [*self._of_types(), *((family, ratio) for ratio in RATIOS[::2] for family in plain)],
        )
        going_on = [family for family in plain if not self._is_useless(family)]
        ways = self._fast_types()
        yield self._new([*_points(going_on, RATIOS[1::2]), *_points(ways, RATIOS[:2])])
        best = max(self._useful(), key=_gain, default=None)
        levers = {} if best is None else best.levers
        joined: list[Family] = [
            {**levers, **family} for family in self.more if not set(family) <= set(levers)
        ]
        alive = [family for family in ways if not self._is_over(family)]
        yield self._new([*_points(alive, RATIOS[2:]), *_points(joined, RATIOS[:2])])

    def _of_types(self) -> list[Point]:
        """8 bits without the layers that lose most, and types at a speed between float and 8 bits."""
        found: list[Point] = []
        for trial in self.trials:
            part = in_part(Goal(), trial)
            if part is None:
                continue
            found.append((part, 0.0))
            if self.times_types and (trial.speedup or 0.0) > PAYS**2:
                found.append((at_speed(math.sqrt(trial.speedup or 1.0)), 0.0))
        return found

    def _fast_types(self) -> list[Family]:
        """Types and tokens that are of use and faster than float, from which channels may go besides."""
        whole = [t for t in self._useful() if t.ratio == 0 and t.levers.get("quantize") != "mixed"]
        return [t.levers for t in whole if _gain(t) > math.log(PAYS) and not self._is_beaten(t)]

    def _between(self) -> list[Point]:
        """Between neighbours on the front whose speeds are apart: a ratio at which the ways of both ends should have
        the speed in the middle, and types at that speed where 8 bits are the faster end."""
        found: list[Point] = []
        for fast, slow in itertools.pairwise(self._front()):
            if _gain(fast) - _gain(slow) <= APART:
                continue
            middle = (_gain(fast) + _gain(slow)) / 2
            for end in (slow, fast):
                ratio = self._ratio_at(end.levers, middle)
                if ratio is not None:
                    found.append((end.levers, ratio))
            if self.times_types and fast.levers == INT8 and fast.ratio == slow.ratio == 0 and fast.speedup:
                found.append((at_speed(math.exp(middle)), 0.0))
        return found

    def _ratio_at(self, family: Family, gain: float) -> float | None:
        """Where a line through what is known of a way has this gain; None where that is not between 0 and the most."""
        known = {_removed(t.ratio): _gain(t) for t in self.trials if t.levers == family}
        if not family:
            known[0.0] = 0.0
        places = sorted(known, key=lambda x: abs(known[x] - gain))[:2]
        if len(places) < 2:
            return None
        one, other = sorted(places)
        slope = (known[other] - known[one]) / (other - one)
        if slope <= 0:
            return None
        ratio = -math.expm1(-(one + (gain - known[one]) / slope))
        return round(ratio, 4) if CLOSEST <= ratio <= LARGEST else None

    def _front(self) -> list[Trial]:
        """What nothing beats, the fastest first; the dense model, which none can, is the last."""
        dense = Trial(0.0, 0.0, 1, 1, speedup=1.0, quality_db=math.inf)
        front: list[Trial] = []
        for trial in sorted(self._useful(), key=lambda t: (-_gain(t), (-t.merit[0], -t.merit[1]))):
            if _gain(trial) > 0 and (not front or trial.merit > front[-1].merit):
                front.append(trial)
        return [*front, dense]

    def _useful(self) -> list[Trial]:
        return [t for t in self.trials if not t.is_useless]

    def _last(self, family: Family) -> Trial | None:
        """The trial of a way that removes most."""
        return max((t for t in self.trials if t.levers == family), key=lambda t: t.ratio, default=None)

    def _is_useless(self, family: Family) -> bool:
        """Whether what removes most is of no use, or could not remove as much as it was to."""
        last = self._last(family)
        return last is None or last.is_useless or last.exhausted

    def _is_beaten(self, trial: Trial) -> bool:
        return any(
            t is not trial and _gain(t) >= _gain(trial) and t.merit > trial.merit for t in self._useful()
        )

    def _is_over(self, family: Family) -> bool:
        last = self._last(family)
        return last is None or self._is_useless(family) or self._is_beaten(last)

    def _new(self, points: Sequence[Point]) -> list[Point]:
        """Without what was tried, or nearly was, and what nothing may be removed of."""
        points = [
            (f, r) for f, r in points if self.removes or self.ratios is not None or not r or "prune" in f
        ]
        found: list[Point] = []
        known = [(t.levers, t.ratio) for t in self.trials]
        for family, ratio in points:
            if not any(f == family and abs(r - ratio) < CLOSEST for f, r in (*known, *found)):
                found.append((family, ratio))
        return found


def _points(families: Sequence[Family], ratios: Sequence[float]) -> list[Point]:
    return [(family, ratio) for ratio in ratios for family in families]


def _acts_alone(family: Family) -> bool:
    """Whether it makes another model although nothing is removed."""
    return not {"quantize", "tokens", "sparsity"}.isdisjoint(family)


def _gain(trial: Trial) -> float:
    """ln of how much faster; of how much smaller where nothing was timed."""
    return math.log(trial.speedup or trial.dense_bytes / max(trial.bytes, 1))


def _removed(ratio: float) -> float:
    return -math.log1p(-min(ratio, LARGEST))
