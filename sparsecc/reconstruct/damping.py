"""How much a refit is damped: so that what one half of the samples teaches mends the other half best.

A text of a thousand tokens explains a layer worse than a thousand images do, and no rule of rows per column tells
by how much. Rows of one sample resemble each other, so each half holds whole samples. By ridge regression's own
scaling (the penalty on sums over rows stays) all samples together need half of what a half needs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sparsecc.calibrate.moments import Moments
from sparsecc.reconstruct import solve

LEAST = 0.01
"""Damping of a refit from plenty of samples."""
DAMPINGS = (LEAST, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
"""Tried in turn for as long as that helps."""
WIDE = 1024
"""Columns beyond which one half alone judges: every trial costs their cube."""


def in_second_half(picks: np.ndarray, rows: int, samples: int, first: int, number: int) -> np.ndarray:
    """For each row picked of a batch of so many rows and samples, whether its sample is an odd one.

    `first` is the number of the batch's first sample, of `number` in all. A single sample is cut in the middle.
    """
    if number == 1:
        return np.asarray(picks >= rows // 2)
    return np.asarray((first + picks * samples // max(rows, 1)) % 2 == 1)


@dataclass
class Halves:
    """The moments of the even and of the odd samples."""

    even: Moments
    odd: Moments

    @staticmethod
    def empty(groups: int, columns: int, outputs: int) -> Halves:
        return Halves(Moments.empty(groups, columns, outputs), Moments.empty(groups, columns, outputs))

    def add(self, rows: np.ndarray, targets: np.ndarray, odd: np.ndarray) -> None:
        """Rows (groups, rows, columns), targets (groups, rows, outputs), and which of the rows are odd."""
        for half, mask in ((self.even, ~odd), (self.odd, odd)):
            half.add(rows[:, mask], targets[:, mask])

    def whole(self) -> Moments:
        return self.even + self.odd


def damping_for(weight: np.ndarray, halves: Halves, *, intercept: bool) -> float:
    """The damping of a refit from all samples, by what a refit from each half misses of the other."""
    if not (halves.even.rows and halves.odd.rows):
        return LEAST
    both = ((halves.even, halves.odd), (halves.odd, halves.even))
    ways = both if weight.shape[2] <= WIDE else both[:1]
    best, least = LEAST, np.inf
    for damping in DAMPINGS:
        error = sum(_unseen_error(weight, *way, intercept, damping) for way in ways)
        if not error < least:
            break
        best, least = damping, error
    return max(LEAST, best / 2)


def _unseen_error(
    weight: np.ndarray, seen: Moments, unseen: Moments, intercept: bool, damping: float
) -> float:
    new = solve.refit(weight, seen, intercept=intercept, damping=damping)
    return solve.relative_error(new, solve.bias_for(new, seen) if intercept else None, unseen)
