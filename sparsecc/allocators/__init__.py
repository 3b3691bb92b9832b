"""How many slots each group keeps, and which: from scores, a cost model and a budget to keep-masks."""

from __future__ import annotations

from collections.abc import Mapping

from sparsecc.allocators.additive import distortion
from sparsecc.allocators.base import Allocator, Candidate, Selection
from sparsecc.allocators.pq import pq
from sparsecc.allocators.threshold import global_threshold
from sparsecc.allocators.uniform import uniform
from sparsecc.names import unknown

ALLOCATORS: Mapping[str, Allocator] = {
    "uniform": uniform,
    "global": global_threshold,
    "pq": pq,
    "distortion": distortion,
}
WITH_CURVES, WITHOUT_CURVES = "distortion", "global"
"""What `auto` means where loss curves were measured, and where not."""


def allocator_named(name: str, *, has_curves: bool = False) -> Allocator:
    """The allocator of that name; `auto` is the best for what is known. InputError names the closest one."""
    if name == "auto":
        name = WITH_CURVES if has_curves else WITHOUT_CURVES
    if name not in ALLOCATORS:
        raise unknown("allocator", "allocators", name, ("auto", *ALLOCATORS))
    return ALLOCATORS[name]


__all__ = ["ALLOCATORS", "Allocator", "Candidate", "Selection", "allocator_named"]
