"""What a report tells of outputs: decibels with an interval, the worst part, answers that are the same."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from sparsecc.loss.answers import Question, agreement
from sparsecc.loss.measure import Outputs, Reference, quality
from sparsecc.loss.parts import Part

RESAMPLES = 1000
"""Bootstrap samples behind an interval."""
ROWS = 4096
"""Rows that a bootstrap draws from at most."""
SPREAD = 3.0
"""Decibels by which single samples of real models differ at least (benchmarks/told_quality.py): a few that happen to
be alike say less than their bootstrap does."""
ENOUGH = 30
"""Samples below which a bootstrap's interval is too narrow by about two in their number."""
WIDEST = 10.0
"""Decibels either way are enough to say that two or three samples tell little."""
CHOSEN = 1.3
"""So much further down reaches the interval of held-out samples that plans were chosen on: of 90 results of real
models on 16 to 29 samples 21 left a bootstrap's interval below, two above (benchmarks/told_quality.py)."""
STUDENT = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20, 2.18, 2.16, 2.14)
"""Student's t at 97.5 % for 1 to 14 degrees of freedom, and MANY for more: an interval is at least so many standard
errors of SPREAD."""
MANY = 2.1


def told(
    dense: Sequence[Outputs],
    found: Sequence[Outputs],
    parts: Sequence[Part] = (),
    asked: Sequence[Question] = (),
    fits: Sequence[int] = (),
    *,
    chosen: bool = False,
) -> dict[str, Any]:
    """How close outputs are to the dense model's for the same inputs, batch by batch.

    quality_db: variance to squared error, the mean over parts, pooled over samples; interval_db: its 95 % interval
    over samples, where there are several; worst: the part that lost most; parts: each in dB; constant: parts that
    are the same on all samples; layers: of parts, the last layer before them; agreement: per part, the share of
    answers that are the same, their number, and the share's interval. {} where no output holds floating-point
    numbers and nothing is asked.

    Where the batches are of several models, `fits` says how many of them each has: the interval then reaches from the
    worst of these models to the best, which is how far one is from another. What was `chosen` by these samples is told
    on them: other inputs are worse sooner than better.
    """
    reference = Reference(dense, parts)
    losses = reference.losses(found)
    facts: dict[str, Any] = losses.to_json() if losses.parts else {}
    if layers := {part.name: part.layer for part in reference.parts if part.layer}:
        facts["layers"] = layers
    if interval := _interval(reference, found, fits, chosen=chosen):
        facts["interval_db"] = interval
    answers = agreement(asked, dense, found)
    if answers:
        facts["agreement"] = [answer.to_json() for answer in answers]
    return facts


def _interval(
    reference: Reference, found: Sequence[Outputs], fits: Sequence[int], *, chosen: bool
) -> list[float] | None:
    """[low, high] of the quality in dB by bootstrap over samples, wider where these are few; None where there is one,
    or a loss is endless."""
    generator = np.random.default_rng(0)
    drawn: dict[int, np.ndarray] = {}
    losses, apart, shares = np.zeros(RESAMPLES), np.zeros(len(fits)), dict[int, np.ndarray]()
    for part in reference.parts:
        error, variance = reference.rows(part, found)
        number = len(error)
        if not 2 <= number <= ROWS or not np.isfinite(error).all() or variance.sum() <= 0:
            return None
        if number not in drawn:
            counts = generator.multinomial(number, np.full(number, 1 / number), size=RESAMPLES)
            drawn[number], shares[number] = counts.astype(np.float64), np.zeros(number)
        shares[number] += error / variance.sum()
        with np.errstate(divide="ignore", invalid="ignore"):
            losses += (drawn[number] @ error) / (drawn[number] @ variance) / len(reference.parts)
            if fits:
                begins = np.cumsum([0, *reference.lengths(part)])[np.cumsum([0, *fits[:-1]])]
                apart += np.add.reduceat(error, begins) / np.add.reduceat(variance, begins)
    losses = np.nan_to_num(losses, nan=np.inf)
    if not drawn:
        return None
    low, high = (quality(float(loss)) for loss in np.quantile(losses, (0.975, 0.025), method="nearest"))
    rows, middle = min(drawn), quality(reference.loss(found))
    if rows < ENOUGH:
        low, high = (round(middle + (end - middle) * (1 + 2 / rows), 2) for end in (low, high))
    if any(
        share.max() > share.sum() / 2 for share in shares.values()
    ):  # the next such sample may be as much worse
        low = min(low, round(2 * middle - high, 2))
    if chosen and high < 100:
        low = round(middle - CHOSEN * (middle - low), 2)
    if high < 100:
        student = STUDENT[rows - 2] if rows - 1 <= len(STUDENT) else MANY
        least = min(WIDEST, student * SPREAD / math.sqrt(rows))
        low, high = min(low, round(middle - least, 2)), max(high, round(middle + least, 2))
    low, high = max(low, quality(np.inf)), min(high, quality(0.0))
    each = [quality(float(loss)) for loss in np.nan_to_num(apart, nan=np.inf) / len(reference.parts)]
    return [min(low, *each), max(high, *each)] if each else [low, high]
