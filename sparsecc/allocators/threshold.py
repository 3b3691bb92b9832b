"""One threshold over all groups."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sparsecc.allocators.base import Candidate, Selection, bisect
from sparsecc.axes import Atom
from sparsecc.cost import CostModel


def global_threshold(candidates: Sequence[Candidate], cost: CostModel, budget: float) -> Selection:
    """Slots compete over all groups by their score relative to their group's mean; counts round to the step.

    Scores of different groups are not comparable as they are; the mean makes them so to first order, and each
    group's floor keeps a layer from being emptied.
    """
    if not candidates:
        return bisect(candidates, cost, budget, lambda share: {}, lambda c, kept: 0.0)
    relative = {c.atom: np.sort(_relative(c.scores))[::-1] for c in candidates}
    pool = np.sort(np.concatenate(list(relative.values())))[::-1]
    allowed = {c.atom: np.asarray(c.counts()) for c in candidates}

    def counts_at(share: float) -> dict[Atom, int]:
        if share >= 1:
            return {c.atom: c.size for c in candidates}
        threshold = pool[min(int(share * len(pool)), len(pool) - 1)]
        counts = {}
        for c in candidates:
            above = int(np.searchsorted(-relative[c.atom], -threshold, side="left"))
            options = allowed[c.atom]
            counts[c.atom] = int(options[np.argmin(np.abs(options - above))])
        return counts

    return bisect(candidates, cost, budget, counts_at, lambda c, kept: float(relative[c.atom][kept]))


def _relative(scores: np.ndarray) -> np.ndarray:
    finite = scores[np.isfinite(scores)]
    mean = finite.mean() if finite.size else 1.0
    return scores / mean if mean > 0 else np.zeros_like(scores)
