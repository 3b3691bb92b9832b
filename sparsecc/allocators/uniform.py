"""The same share of every group."""

from __future__ import annotations

from sparsecc.allocators.base import Problem, Selection, by_shares


def uniform(problem: Problem) -> Selection:
    """Every group keeps the same share, rounded to its step."""
    return by_shares(problem, lambda t: t)
