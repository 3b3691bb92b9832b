"""The table of ATen rules: one row per operator, whatever its overload; in-place variants share the row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sparsecc.rules import Trait
from sparsecc.torch.rules.edit import AtenEdit
from sparsecc.torch.rules.site import AtenSite

Follow = Callable[[AtenSite], None]
Fix = Callable[[AtenEdit], None]


@dataclass(frozen=True)
class AtenRule:
    """How axes flow through a call, which of its arguments follow the sizes of axes, and what it does to numbers."""

    follow: Follow
    fix: Fix | None = None
    traits: Trait = Trait.NONE


ATEN: dict[str, AtenRule] = {}
"""Operator name -> rule."""
PINNED: dict[str, str] = {}
"""Operators that are pinned on purpose -> why."""


def aten(names: str, fix: Fix | None = None, *, traits: Trait = Trait.NONE) -> Callable[[Follow], Follow]:
    """Register a function as the rule of one or several operators."""

    def register(follow: Follow) -> Follow:
        for name in names.split():
            ATEN[name] = AtenRule(follow, fix, traits)
        return follow

    return register


def pinned(names: str, reason: str) -> None:
    """Register operators whose operands and results lose nothing."""
    for name in names.split():
        PINNED[name] = reason
