"""Shares from the shapes of the weights alone: Erdős-Rényi-Kernel.

"Rigging the Lottery" (Evci et al., 2020), as "The Unreasonable Effectiveness of Random Pruning" (Liu et al., 2022)
uses it: the density of a layer is proportional to the sum of its sizes over their product.
"""

from __future__ import annotations

import math

import numpy as np

from sparsecc.allocators.base import Candidate, Problem, Selection, by_shares


def erk(problem: Problem) -> Selection:
    """Every group keeps what ERK makes the density of its weights; wide layers give up the most.

    What would be more than whole is whole, and the others keep the more for it.
    """
    raw = np.array([density(c) for c in problem.candidates])
    whole = raw / raw.min(initial=np.inf)
    return by_shares(problem, lambda t: np.minimum(1.0, t * whole))


def density(candidate: Candidate) -> float:
    """The sum of all sizes of its weights over their number; relative to those of other groups."""
    shapes = candidate.shapes or ((candidate.size,),)
    return sum(map(sum, shapes)) / sum(map(math.prod, shapes))
