"""How much a refit is damped: so that what one half of the samples teaches mends the other half best.

A text of a thousand tokens explains a layer worse than a thousand images do, and no rule of rows per column tells
by how much. Rows of one sample resemble each other, so each half holds whole samples. By ridge regression's own
scaling (the penalty on sums over rows stays) all samples together need half of what a half needs.

Outputs of unlike scale (boxes beside scores) count by parts, each relative to its own variance, as what is lost does.

What no trial changes is computed once, and many outputs are judged by random sums of them, whose errors add up to
the same in expectation (Johnson & Lindenstrauss, 1984): a trial costs one solution for a few right-hand sides.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from sparsecc.calibrate.moments import Moments
from sparsecc.loss.parts import stretches
from sparsecc.reconstruct import solve

LEAST = 0.01
"""Damping of a refit from plenty of samples."""
DAMPINGS = (LEAST, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
"""Tried in turn for as long as that helps."""
SINGLE = 256
"""Columns beyond which dampings are judged in float32: every trial costs their cube."""
WIDE = 1024
"""Columns beyond which one half alone judges."""
MANY = 128
"""Outputs beyond which so many random sums of them stand for all."""


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


def balanced(uses: Sequence[Halves], *, intercept: bool) -> Halves:
    """One weight's moments from those of all its uses, which count the same, relative to how far their targets vary.

    With an `intercept` each use has a bias of its own, which takes up its means. A use with few rows (a small map, a
    short sequence) is no less of the model's outputs than one with many.
    """
    wholes = [use.whole() for use in uses]
    scales = [float(whole.rows * whole.target_variance().sum()) for whole in wholes]
    weights = np.array([1 / scale if scale > 0 else 0.0 for scale in scales])
    rows = np.array([whole.rows for whole in wholes])
    weights = weights * rows.sum() / (weights @ rows) if weights.any() else np.ones(len(uses))
    if intercept:
        uses = [Halves(use.even.centred(), use.odd.centred()) for use in uses]
    even, odd = (
        [getattr(use, half).weighted(w) for use, w in zip(uses, weights, strict=True)]
        for half in ("even", "odd")
    )
    return Halves(sum(even[1:], even[0]), sum(odd[1:], odd[0]))


def damping_for(weight: np.ndarray, halves: Halves, *, intercept: bool) -> float:
    """The damping of a refit from all samples, by what a refit from each half misses of the other."""
    if not (halves.even.rows and halves.odd.rows):
        return LEAST
    both = ((halves.even, halves.odd), (halves.odd, halves.even))
    ways = both if weight.shape[2] <= WIDE else both[:1]
    scale = by_parts(halves.whole().target_variance())
    trials = [_Trial.of(weight, seen, unseen, intercept, scale) for seen, unseen in ways]
    best, least = LEAST, np.inf
    for damping in DAMPINGS:
        error = sum(trial.error(damping) for trial in trials)
        if not error < least:
            break
        best, least = damping, error
    return max(LEAST, best / 2)


def by_parts(variance: np.ndarray) -> np.ndarray:
    """What outputs (groups, outputs) of these variances are multiplied by for parts of unlike scale to count alike."""
    scale = np.ones(variance.shape)
    for row, of in zip(scale, variance, strict=True):
        parts = stretches(np.sqrt(np.maximum(of, 0)))
        for start, stop in parts if len(parts) > 1 else ():
            energy = float(of[start:stop].sum())
            row[start:stop] = energy**-0.5 if energy > 0 else 1.0
    return scale


@dataclass(frozen=True)
class _Trial:
    """A refit from samples that were seen, judged by others.

    `inputs` and `missing` are what `solve.change` takes. `unseen` (groups, columns, columns) are second moments of
    the other inputs, about the means of those seen if a bias takes these up; `surplus` (groups, outputs, columns)
    is what the present weight gives too much there. `signal` is the variance of the other targets.
    """

    inputs: np.ndarray
    missing: np.ndarray
    unseen: np.ndarray
    surplus: np.ndarray
    signal: float

    @staticmethod
    def of(weight: np.ndarray, seen: Moments, unseen: Moments, intercept: bool, scale: np.ndarray) -> _Trial:
        few = _few(scale)
        few_weight, precision = few(weight), np.float32 if weight.shape[2] > SINGLE else np.float64
        inputs, wanted = solve.normal_equations(seen, intercept=intercept)
        missing = (few(wanted) - few_weight @ inputs).astype(precision)
        inputs = inputs.astype(precision, copy=False)
        others, wanted = solve.normal_equations(unseen, intercept=intercept)
        if intercept:
            moved, drift = unseen.mean - seen.mean, unseen.target_mean - seen.target_mean
            wanted += drift[:, :, None] * moved[:, None, :]
            others += moved[:, :, None] * moved[:, None, :]
        surplus = (few_weight @ others - few(wanted)).astype(precision)
        signal = float((unseen.target_variance() * scale**2).sum())
        return _Trial(inputs, missing, others.astype(precision, copy=False), surplus, signal)

    def error(self, damping: float) -> float:
        """By how much the refit's error on the other samples is larger than that of the present weight, relative
        to their variance; below zero where it is smaller.
        """
        new = solve.change(self.inputs, self.missing, damping)
        added = float(solve.power(new, self.unseen).sum()) + 2 * float(np.vdot(new, self.surplus))
        return added / self.signal if self.signal > 0 else 0.0


def _few(scale: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """What makes random sums of the outputs of a matrix (groups, outputs, columns), each times its `scale`; few stay
    by themselves."""
    outputs = scale.shape[1]
    if outputs <= MANY:
        return lambda matrix: matrix * scale[:, :, None]
    signs = np.random.default_rng(0).choice((-1.0, 1.0), (MANY, outputs)) / MANY**0.5
    scaled = signs * scale[:, None]
    return lambda matrix: scaled @ matrix
