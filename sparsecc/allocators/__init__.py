"""How many slots each group keeps, and which: from scores, a cost model and a budget to keep-masks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from sparsecc.allocators.angular import angular
from sparsecc.allocators.base import Candidate, Problem, Selection
from sparsecc.allocators.dynamic_program import distortion, rehearsed
from sparsecc.allocators.erk import erk
from sparsecc.allocators.evolution import evolution
from sparsecc.allocators.pq import pq
from sparsecc.allocators.sequential import sequential
from sparsecc.allocators.threshold import flap, global_threshold
from sparsecc.allocators.uniform import uniform
from sparsecc.errors import unknown

Allocate = Callable[[Problem], Selection]
"""Counts that cost at most the budget, if that can be reached."""


@dataclass(frozen=True)
class Allocator:
    """An allocation, and what it makes of samples: nothing, the angles of blocks, loss curves (it does without
    where there are no samples), the joint loss of cuts it tries, or curves and rehearsals of a few cuts."""

    allocate: Allocate
    uses: Literal["scores", "angles", "curves", "joint", "rehearsals"] = "scores"


ALLOCATORS: Mapping[str, Allocator] = {
    "uniform": Allocator(uniform),
    "erk": Allocator(erk),
    "global": Allocator(global_threshold),
    "flap": Allocator(flap),
    "pq": Allocator(pq),
    "angular": Allocator(angular, uses="angles"),
    "distortion": Allocator(distortion, uses="curves"),
    "rehearsed": Allocator(rehearsed, uses="rehearsals"),
    "sequential": Allocator(sequential, uses="joint"),
    "evolution": Allocator(evolution, uses="joint"),
}
WITH_CURVES, WITHOUT_CURVES = "rehearsed", "global"
"""What `auto` means where loss curves were measured, and where not."""


def allocator_named(name: str, *, has_curves: bool = False) -> Allocator:
    """The allocator of that name; `auto` is the best for what is known. InputError names the closest one."""
    if name == "auto":
        name = WITH_CURVES if has_curves else WITHOUT_CURVES
    if name not in ALLOCATORS:
        raise unknown("allocator", "allocators", name, ("auto", *ALLOCATORS))
    return ALLOCATORS[name]


def name_of(allocator: Allocator) -> str:
    """The name by which it is asked for."""
    return next(name for name, row in ALLOCATORS.items() if row is allocator)


__all__ = [
    "ALLOCATORS",
    "WITH_CURVES",
    "Allocator",
    "Candidate",
    "Problem",
    "Selection",
    "allocator_named",
    "name_of",
]
