"""What a search is told to try: types, criteria, allocators and repairs in every combination, and shares to remove."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sparsecc.decide.front_search import RATIOS
from sparsecc.decide.goal_search import Family
from sparsecc.errors import InputError
from sparsecc.options import CompileOptions, Tried, rows_of
from sparsecc.options.table import AUTO

VARIED = {name: row.tries for name, row in rows_of(Tried).items()}
"""What a search tries -> the option that it sets."""


@dataclass(frozen=True, kw_only=True)
class Space(Tried):
    """What was given of it is an order, the rest is left to the search."""

    @property
    def names_types(self) -> bool:
        return AUTO not in self.quantizes

    def families(self, types: Sequence[Family]) -> list[Family]:
        """Every combination of `types`, or of those that are said by name, with what else is tried."""
        if self.names_types:
            types = [{} if name is None else {"quantize": name} for name in self.quantizes]
        named = [(VARIED[name], getattr(self, name)) for name in ("criteria", "allocators", "recovers")]
        ways = [
            {name: value for name, value in zip((n for n, _ in named), values, strict=True) if value != AUTO}
            for values in itertools.product(*(values for _, values in named))
        ]
        return [{**way, **kind} for kind in types for way in ways]

    def require_known(self, base: Mapping[str, Any]) -> None:
        """InputError for a point that no compile would take, before any is made."""
        from sparsecc.decide.channels import require_methods
        from sparsecc.decide.passes import require_passes

        taken = [name for name in VARIED.values() if name in base]
        if taken:
            raise InputError(f"a search sets {taken[0]} itself: give the values to try")
        families, ratios = self.families([{}]), RATIOS if self.ratios is None else self.ratios
        if not families or not ratios:
            raise InputError(
                "there is nothing to try: give at least one value of each, e.g. --ratios 0.3,0.5"
            )
        for family, ratio in itertools.product(families, ratios):
            options = CompileOptions.of({**base, **family, "ratio": ratio})
            require_methods(options)
            require_passes(options)
