"""What a convolution sees is a whole axis: where several groups lie side by side on it, their sum is aligned.

The pieces of an axis (a stream whose shortcut pads channels on, branches that are joined) have steps of their own, and
sums of those may be no multiple that kernels like: 30 channels leave ONNX Runtime's blocked layout.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from sparsecc.allocators.base import Candidate, Problem, Selection, Worth, fill
from sparsecc.allocators.dynamic_program import loss_at
from sparsecc.axes.algebra import Atom


@dataclass(frozen=True)
class Pieces:
    """The atoms that lie side by side on an axis, the slots of it that always stay, and the multiple that its kernels
    like."""

    atoms: tuple[Atom, ...]
    others: int
    step: int


def aligned(problem: Problem, selection: Selection, axes: Sequence[Pieces]) -> Selection:
    """The selection with the sums of pieces at the multiple that is nearest, what more slots cost taken from other
    groups; where those have too little, at the multiple below, and what that frees goes to them.

    Groups that are an axis of their own are no pieces to move; sums that nothing can move stay as they are.
    """
    of = {c.atom: c for c in problem.candidates}
    fixed = {axis.atoms[0] for axis in axes if len(axis.atoms) == 1 and not axis.others}
    joint = [axis for axis in axes if len(axis.atoms) > 1 or axis.others]
    alone = [c for c in problem.candidates if not any(c.atom in axis.atoms for axis in joint)]
    counts, moved = dict(selection.counts), False
    ranked = {atom: np.sort(c.scores)[::-1] for atom, c in of.items()}
    for axis in sorted(joint, key=lambda a: a.others + sum(_size(atom) for atom in a.atoms)):
        movable = [of[a] for a in axis.atoms if a in of and a not in fixed]
        over = (axis.others + sum(counts.get(a, _size(a)) for a in axis.atoms)) % axis.step
        fixed.update(axis.atoms)
        if not over or not movable:
            continue
        for change in sorted((axis.step - over, -over), key=abs):
            tried = _moved(movable, counts, ranked, change)
            if tried and change > 0:
                tried = _paid(problem, alone, {**counts, **tried})
            if tried:
                counts, moved = {**counts, **tried}, True
                break
    if not moved:
        return selection
    worth: Worth = lambda c, kept: float(ranked[c.atom][kept])  # noqa: E731
    filled = fill(replace(problem, candidates=alone), counts, problem.cost.total(counts), worth)
    return replace(selection, counts=filled.counts, cost=filled.cost)


def _paid(problem: Problem, payers: Sequence[Candidate], counts: dict[Atom, int]) -> dict[Atom, int]:
    """Counts within the budget, steps taken from the payers in turn: by the loss of a unit of cost where curves tell
    it, else from whoever keeps the largest share; {} where they have too little."""
    counts, total = dict(counts), problem.cost.total(counts)
    while total > problem.budget:
        steps = []
        for c in payers:
            lower = max((n for n in c.counts() if n < counts[c.atom]), default=None)
            freed = -problem.cost.change(counts, c.atom, lower) if lower is not None else 0.0
            if lower is not None and freed > 0:
                steps.append((_price(c, counts[c.atom], lower, freed), -freed, c.atom, lower))
        if not steps:
            return {}
        _, freed, atom, lower = min(steps, key=lambda step: step[:2])
        counts[atom], total = lower, total + freed
    return counts


def _price(c: Candidate, kept: int, lower: int, freed: float) -> float:
    if c.curve is None:
        return -kept / c.size
    return (loss_at(c.curve, lower) - loss_at(c.curve, kept)) / freed


def _size(atom: Atom) -> int:
    assert isinstance(atom.size, int)
    return atom.size


def _moved(
    movable: Sequence[Candidate], counts: dict[Atom, int], ranked: dict[Atom, np.ndarray], change: int
) -> dict[Atom, int]:
    """The counts after so many slots came or went, each where its score says; {} where there are not so many."""
    found = {c.atom: counts[c.atom] for c in movable}
    for _ in range(abs(change)):
        if change > 0:
            able = [c for c in movable if found[c.atom] < c.size]
            best = max(able, key=lambda c: ranked[c.atom][found[c.atom]], default=None)
        else:
            able = [c for c in movable if found[c.atom] > max(c.floor, 1)]
            best = min(able, key=lambda c: ranked[c.atom][found[c.atom] - 1], default=None)
        if best is None:
            return {}
        found[best.atom] += 1 if change > 0 else -1
    return found
