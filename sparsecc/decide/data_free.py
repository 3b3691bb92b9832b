"""Without samples: of a few plans by weights alone, the one that moves the outputs least on random inputs.

No criterion is best for every model, and weights do not tell which layers a model can spare. Random inputs are unlike
real ones, but a plan that ruins a model ruins it on them too (docs/methods.md). Random integers are no language: what
reads them keeps the plan that does well on most, or on most recurrent models.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from sparsecc.allocators import Allocator, Candidate, Problem, Selection, allocator_named
from sparsecc.allocators.output_error import Bench
from sparsecc.axes.algebra import Atom
from sparsecc.compilation import Compilation
from sparsecc.cost.model import CostModel
from sparsecc.cost.summary import macs
from sparsecc.graph.analysis import Analysis
from sparsecc.loss.parts import parts_of_outputs
from sparsecc.reference.masked_channels import masked
from sparsecc.runtime.numerics import is_float

PLANS = (("lamp", "global"), ("l2", "global"), ("l2", "uniform"), ("fpgm", "global"), ("fpgm", "uniform"))
"""(criterion, allocator), what is taken where nothing can be tried first."""
RECURRENT = frozenset({"LSTM", "GRU", "RNN"})
"""Operators of models that lose least by `l2`, `uniform` where nothing can be tried."""
WORK = 5e10
"""Multiply-accumulates that all trials together may take: some seconds on one core."""
DISTANCES = 1e10
"""Multiply-accumulates of distances between slots (fpgm) beyond which plans by them are not tried."""
FEWEST, MOST = 2, 32
"""Random samples to a trial."""
NEAR = 1.2
"""Losses up to so many times the least are no worse, and the plan that stands first is taken: between draws of the
samples the ratio of two plans' losses moves by a tenth (docs/methods.md)."""


@dataclass(frozen=True)
class Method:
    """A criterion with its scores, and an allocator. `loss` is what their plan loses on random inputs, where that was
    tried."""

    criterion: str
    allocator: Allocator
    candidates: list[Candidate]
    loss: float | None = None


def keep_of(candidates: Sequence[Candidate], selection: Selection) -> dict[Atom, np.ndarray]:
    """The masks of the groups that lose slots."""
    counts = selection.counts
    return {
        c.atom: c.best(counts[c.atom]) for c in candidates if counts[c.atom] < c.size or c.gone is not None
    }


def least_moved(
    compilation: Compilation,
    analysis: Analysis,
    scores: Callable[[str], list[Candidate]],
    cost: CostModel,
    budget: float,
) -> Method | None:
    """The method whose plan moves the outputs least; None where random inputs tell nothing, or take too long.

    Recurrent models then get the plan that is safest for most of them.
    """
    bench = _bench(compilation, analysis)
    if bench is None:
        is_recurrent = any(node.op_type in RECURRENT for node in analysis.model.graph.all_nodes())
        return Method("l2", allocator_named("uniform"), scores("l2")) if is_recurrent else None
    plans = [plan for plan in PLANS if plan[0] != "fpgm" or _distances(analysis) <= DISTANCES]
    scored = {criterion: scores(criterion) for criterion, _ in plans}
    known: dict[bytes, float] = {}
    found: list[tuple[bool, float, Method]] = []
    for at, (criterion, allocator) in enumerate(plans):
        compilation.progress(f"try {criterion}, {allocator}", at / len(plans))
        method = Method(criterion, allocator_named(allocator), scored[criterion])
        selection = method.allocator.allocate(Problem(method.candidates, cost, budget))
        keep = keep_of(method.candidates, selection)
        name = b" ".join(keep[c.atom].tobytes() if c.atom in keep else b"" for c in method.candidates)
        if name not in known:
            known[name] = bench.moved(masked(analysis, keep))
        found.append((not selection.reached, known[name], replace(method, loss=known[name])))
    return first_of_the_least(found)


def first_of_the_least(found: Sequence[tuple[bool, float, Method]]) -> Method:
    """Of (whether its plan misses the budget, loss, method): the first with a loss near the least of those that reach
    it, where any does."""
    missed, least, _ = min(found, key=lambda one: one[:2])
    return next(method for misses, loss, method in found if misses == missed and not loss > NEAR * least)


def _distances(analysis: Analysis) -> float:
    """Multiply-accumulates of all products of two slots' weights: size times length, over the axes of all weights."""
    tensors = [value.const_value for value, _ in analysis.weights()]
    shapes = [[int(d) for d in tensor.shape] for tensor in tensors if tensor is not None]  # type: ignore[arg-type]
    return float(sum(math.prod(shape) * sum(shape) for shape in shapes if len(shape) > 1))


def _bench(compilation: Compilation, analysis: Analysis) -> Bench | None:
    options = compilation.options
    if not compilation.has_begun or compilation.dense.by_parts:
        return None
    if not all(is_float(np.asarray(array)) for array in compilation.feeds[0].values()):
        return None
    number = min(MOST, int(WORK / max((len(PLANS) + 1) * macs(analysis, {}), 1.0)))
    if number < FEWEST:
        return None
    samples = compilation.drawn(number, joined=False)
    scratch = compilation.scratch.bench
    return Bench(analysis.model, samples, scratch, options.threads, parts_of_outputs(analysis))
