"""One threshold over all groups."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sparsecc.allocators.base import Candidate, Selection, bisect
from sparsecc.axes import Atom
from sparsecc.collection import collector_paused
from sparsecc.cost import CostModel


@collector_paused()
def global_threshold(candidates: Sequence[Candidate], cost: CostModel, budget: float) -> Selection:
    """Slots compete over all groups by their score relative to their group's mean; counts round to the step.

    Scores of different groups are not comparable as they are; the mean makes them so to first order, and each
    group's floor keeps a layer from being emptied.
    """
    if not candidates:
        return bisect(candidates, cost, budget, lambda share: {}, lambda c, kept: 0.0)
    relative = [np.sort(_relative(c.scores))[::-1] for c in candidates]
    pool, owners = np.concatenate(relative), np.repeat(np.arange(len(relative)), [len(r) for r in relative])
    order = np.argsort(-pool, kind="stable")
    pool, owners = pool[order], owners[order]
    nearest = _Nearest(candidates)

    def counts_at(share: float) -> dict[Atom, int]:
        if share >= 1:
            return {c.atom: c.size for c in candidates}
        threshold = pool[min(int(share * len(pool)), len(pool) - 1)]
        larger = int(np.searchsorted(-pool, -threshold, side="left"))
        counts = nearest(np.bincount(owners[:larger], minlength=len(candidates)))
        return {c.atom: count for c, count in zip(candidates, counts.tolist(), strict=True)}

    of = {c.atom: scores for c, scores in zip(candidates, relative, strict=True)}
    return bisect(candidates, cost, budget, counts_at, lambda c, kept: float(of[c.atom][kept]))


class _Nearest:
    """Rounds a count per candidate to the nearest that it may keep, the smaller of two as near."""

    def __init__(self, candidates: Sequence[Candidate]) -> None:
        self.size = np.array([c.size for c in candidates])
        self.step = np.array([c.step for c in candidates])
        floor = np.array([max(c.floor, 1) for c in candidates])
        self.first = np.minimum(-(-floor // self.step) * self.step, self.size)
        self.last = np.maximum((self.size - 1 - self.first) // self.step, 0)

    def __call__(self, counts: np.ndarray) -> np.ndarray:
        steps = -((self.step - 2 * (counts - self.first)) // (2 * self.step))
        stepped = self.first + self.step * np.clip(steps, 0, self.last)
        return np.where(np.abs(stepped - counts) <= self.size - counts, stepped, self.size)


def _relative(scores: np.ndarray) -> np.ndarray:
    finite = scores[np.isfinite(scores)]
    mean = finite.mean() if finite.size else 1.0
    return scores / mean if mean > 0 else np.zeros_like(scores)
