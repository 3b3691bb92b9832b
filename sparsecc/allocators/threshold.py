"""One threshold over all groups."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from sparsecc.allocators.base import Nearest, Problem, Selection, bisect
from sparsecc.axes.algebra import Atom
from sparsecc.system.gc_pause import collector_paused


def global_threshold(problem: Problem) -> Selection:
    """Slots compete over all groups by their score relative to their group's mean; counts round to the step.

    Scores of different groups are not comparable as they are; the mean makes them so to first order, and each
    group's floor keeps a layer from being emptied.
    """
    return _over_all(problem, relative)


def flap(problem: Problem) -> Selection:
    """As `global_threshold`, by how many standard deviations a score is above its group's mean.

    "Fluctuation-based Adaptive Structured Pruning for Large Language Models" (An et al., 2023).
    """
    return _over_all(problem, standardised)


@collector_paused()
def _over_all(problem: Problem, comparable: Callable[[np.ndarray], np.ndarray]) -> Selection:
    candidates, nearest = problem.candidates, Nearest(problem.candidates)
    ranked = [np.sort(comparable(c.scores))[::-1] for c in candidates]
    pool = np.concatenate([np.zeros(0), *ranked])
    owners = np.repeat(np.arange(len(ranked)), [len(r) for r in ranked])
    order = np.argsort(-pool, kind="stable")
    pool, owners = pool[order], owners[order]

    def counts_at(share: float) -> dict[Atom, int]:
        if share >= 1 or not candidates:
            return {c.atom: c.size for c in candidates}
        threshold = pool[min(int(share * len(pool)), len(pool) - 1)]
        larger = int(np.searchsorted(-pool, -threshold, side="left"))
        return nearest(np.bincount(owners[:larger], minlength=len(candidates)))

    of = {c.atom: scores for c, scores in zip(candidates, ranked, strict=True)}
    return bisect(problem, counts_at, lambda c, kept: float(of[c.atom][kept]))


def relative(scores: np.ndarray) -> np.ndarray:
    """Over the mean of the finite ones; zero where that is not positive."""
    finite = scores[np.isfinite(scores)]
    mean = finite.mean() if finite.size else 1.0
    return scores / mean if mean > 0 else np.zeros_like(scores)


def standardised(scores: np.ndarray) -> np.ndarray:
    """With mean 0 and deviation 1 over the finite ones; zero where all are alike."""
    finite = scores[np.isfinite(scores)]
    deviation = finite.std() if finite.size else 0.0
    if deviation == 0:
        return np.where(np.isfinite(scores), 0.0, scores)
    return np.asarray((scores - finite.mean()) / deviation)
