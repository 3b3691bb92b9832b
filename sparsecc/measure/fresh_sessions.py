"""Comparisons over rounds of fresh sessions: where one lies in memory moves its speed by some per cent."""

from __future__ import annotations

import resource
from collections.abc import Callable
from dataclasses import replace

from sparsecc.errors import InputError
from sparsecc.measure.interleave import Budget, Clock, Comparison, Run, compare

Start = Callable[[], Run]
"""Makes a fresh session, and gives one inference with it."""

_PAIRS = 5


def clock_for(threads: int) -> Clock:
    """Processor time for one thread; with more, their sum says nothing about waiting: the wall clock.

    The wall clock too under `ulimit -t`: Linux then advances processor time by ticks longer than an inference.
    """
    is_fine = resource.getrlimit(resource.RLIMIT_CPU)[0] == resource.RLIM_INFINITY
    return "cpu" if threads == 1 and is_fine else "wall"


def compare_fresh(
    before: Start, after: Start, *, rounds: int, budget: Budget, threads: int = 1, seed: int = 0
) -> Comparison:
    """Time two models in `rounds` rounds, each with sessions of its own, made in alternating order.

    `budget` is that of all rounds together; each has five pairs at least. InputError below two rounds.
    """
    if rounds < 2:
        raise InputError(f"fresh sessions need at least 2 rounds to be compared over, not {rounds}")
    share = replace(
        budget,
        pairs=max(_PAIRS, budget.pairs // rounds),
        seconds=budget.seconds / rounds,
        warmup_seconds=budget.warmup_seconds / rounds,
    )
    total: Comparison | None = None
    for number in range(rounds):
        runs = _sessions(before, after, swapped=number % 2 == 1)
        part = compare(
            *runs, budget=share, clock=clock_for(threads), threads=threads, seed=seed * 7919 + number
        )
        total = part if total is None else total.joined(part)
    assert total is not None
    return total


def _sessions(before: Start, after: Start, *, swapped: bool) -> tuple[Run, Run]:
    if swapped:
        second = after()
        return before(), second
    return before(), after()
