"""The same share of every group."""

from __future__ import annotations

from collections.abc import Sequence

from sparsecc.allocators.base import Candidate, Selection, bisect
from sparsecc.axes import Atom
from sparsecc.cost import CostModel


def uniform(candidates: Sequence[Candidate], cost: CostModel, budget: float) -> Selection:
    """Every group keeps the same share, rounded to its step."""
    allowed = {c.atom: c.counts() for c in candidates}

    def counts_at(share: float) -> dict[Atom, int]:
        return {
            c.atom: min(allowed[c.atom], key=lambda n, c=c: (abs(n - share * c.size), n))  # type: ignore[misc]
            for c in candidates
        }

    return bisect(candidates, cost, budget, counts_at, lambda c, kept: -kept / c.size)
