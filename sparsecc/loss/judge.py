"""Whether what is left is of use: the thresholds of quality and agreement, and the part that decides.

They are those below which task metrics of real models fell by more than a tenth (`benchmarks/verdicts.py`,
docs/accuracy.md). Where answers are known they decide: classifiers give the same answers at a few decibels, where all
logits shrank alike.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

Use = Literal["usable", "doubtful", "useless"]

USELESS_DB, DOUBTFUL_DB = 8.0, 14.0
"""Quality in dB of a part whose answers are not known."""
USELESS_AGREEMENT, DOUBTFUL_AGREEMENT = 0.8, 0.9
"""Share of answers that stay the same. Few answers whose interval reaches the second make no useless result, and few
whose interval reaches the first no usable one by themselves: decibels have to be good then, too."""
TENTH = 0.1
"""A metric that fell by more than this share of what it was is that of a useless result."""
_ORDER: tuple[Use, ...] = ("useless", "doubtful", "usable")


TWENTIETH = 0.05
"""Nats that grew by more than this share of what guessing would add are those of a doubtful result."""


def use_of_text(text: Mapping[str, Any]) -> Use | None:
    """What a language model is worth whose loss of a token grew from `before` to `after` nats: by the share of what
    guessing among its `words` would add. None where it guessed before."""
    room = math.log(text["words"]) - text["before"]
    if not room > 0:
        return None
    share = (text["after"] - text["before"]) / room
    if not share <= TENTH:  # NaN is of no use
        return "useless"
    return "doubtful" if share > TWENTIETH else "usable"


def use_of(facts: Mapping[str, Any]) -> Use:
    """What the worst part of `quality.told` is worth: by its answers where these are known, else by its decibels."""
    answers = {answer["part"]: answer for answer in facts.get("agreement", ())}
    found = [_agreed(**answer) for answer in answers.values()]
    for part, quality in facts.get("parts", {}).items():
        of = [one for name, one in answers.items() if part == name or part.startswith(f"{name}[")]
        use = _use(quality, USELESS_DB, DOUBTFUL_DB)
        if not of:
            found.append(use)
        elif use != "usable" and any(_may_be_useless(**one) for one in of):
            found.append("doubtful")
    return min(found, key=_ORDER.index, default="usable")


def _agreed(*, share: float, interval: Sequence[float], **_: Any) -> Use:
    use = _use(share, USELESS_AGREEMENT, DOUBTFUL_AGREEMENT)
    return "doubtful" if use == "useless" and interval[1] >= DOUBTFUL_AGREEMENT else use


def _may_be_useless(*, interval: Sequence[float], **_: Any) -> bool:
    """Whether the answers are so few that, all alike as they may be, they do not tell it from a useless result."""
    return interval[0] < USELESS_AGREEMENT


def _use(value: float, useless: float, doubtful: float) -> Use:
    return "useless" if value < useless else "doubtful" if value < doubtful else "usable"


def worst_quality(facts: Mapping[str, Any]) -> float | None:
    """The decibels of the part that lost most; None where no output holds floating-point numbers."""
    found = facts.get("worst", facts).get("quality_db")
    return None if found is None else float(found)


def lowest_agreement(facts: Mapping[str, Any]) -> float:
    """The least share of answers that are the same, over all parts that are asked; 1 where none is."""
    return min((answer["share"] for answer in facts.get("agreement", ())), default=1.0)
