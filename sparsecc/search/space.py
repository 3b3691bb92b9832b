"""Which compiles a search tries: a grid first, then between neighbours on the front."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sparsecc.errors import InputError
from sparsecc.options import CompileOptions, Tried, rows_of
from sparsecc.options.table import AUTO
from sparsecc.targets import target_named

CLOSEST = 0.02
"""Ratios nearer than this are not told apart."""
VARIED = {name: row.tries for name, row in rows_of(Tried).items()}
"""What a search tries -> the option that it sets."""


@dataclass(frozen=True, kw_only=True)
class Space(Tried):
    """Every combination of what is tried is a point; nothing removed in no other type is none."""

    def resolved(self, base: Mapping[str, Any]) -> Space:
        """With types said by name: those that a search to a goal would try with the options `base`, and them alone."""
        if AUTO not in self.quantizes:
            return self
        options = CompileOptions.of(base)
        taken = options.samples is not None and "int8" in target_named(options.target).types
        if "quantize" in base or not taken or "types" not in options.levers:
            return replace(self, quantizes=(None,))
        return replace(self, quantizes=(None, "int8"), ratios=(0.0, *(r for r in self.ratios if r)))

    def grid(self) -> Iterator[dict[str, Any]]:
        """The options of each point, small ratios first, so that an interrupted search has a whole picture."""
        for values in itertools.product(*(getattr(self, name) for name in VARIED)):
            point = {k: v for k, v in zip(VARIED.values(), values, strict=True) if v is not None}
            if point["ratio"] or "quantize" in point or len(self.quantizes) == 1:
                yield point

    def require_known(self, base: Mapping[str, Any]) -> None:
        """InputError for a point that no compile would take, before any is made."""
        from sparsecc.decide.channels import require_methods
        from sparsecc.decide.passes import require_passes

        taken = [name for name in VARIED.values() if name in base]
        if taken:
            raise InputError(f"a search sets {taken[0]} itself: give the values to try")
        points = list(self.grid())
        if not points:
            raise InputError(
                "there is nothing to try: give at least one value of each, e.g. --ratios 0.3,0.5"
            )
        for point in points:
            options = CompileOptions.of({**base, **point})
            require_methods(options)
            require_passes(options)


def between(rows: Sequence[Mapping[str, Any]], front: Sequence[str]) -> list[dict[str, Any]]:
    """Points between neighbours on the front: the ratio in the middle, in the ways of both ends."""
    by_id = {row["id"]: row["options"] for row in rows}
    chosen = sorted((by_id[one] for one in front), key=lambda options: float(options["ratio"]))
    found = []
    for one, other in itertools.pairwise(chosen):
        if other["ratio"] - one["ratio"] > 2 * CLOSEST:
            ratio = round((one["ratio"] + other["ratio"]) / 2, 4)
            found += [{**end, "ratio": ratio} for end in (one, other)]
    return [point for number, point in enumerate(found) if point not in found[:number]]
