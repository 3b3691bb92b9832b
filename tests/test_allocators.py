"""Allocation: budgets hold, floors hold, the dynamic program is exact."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sparsecc.allocators import ALLOCATORS, Candidate, Problem
from sparsecc.allocators.dynamic_program import additive_allocate, distortion, losses_of
from sparsecc.allocators.sensitivity import levels_of, monotone
from sparsecc.allocators.uniform import uniform
from sparsecc.axes.algebra import Atom
from sparsecc.axes.sizes import at
from sparsecc.cost.model import CostModel, Term
from sparsecc.data.samples import Samples
from sparsecc.decide.channels import POOR, Choice, choose, foreseen
from sparsecc.graph.groups import find_groups
from tests.compilations import compilation
from tests.repair_models import analysed, normal


@pytest.mark.parametrize("seed", range(20))
def test_the_dynamic_program_equals_brute_force(seed: int) -> None:
    generator = np.random.default_rng(seed)
    losses = generator.random((4, 5)).tolist()
    costs = generator.integers(0, 100, (4, 5)).astype(float).tolist()
    budget = float(generator.integers(50, 300))
    options = itertools.product(range(5), repeat=4)
    fits = [o for o in options if sum(costs[i][n] for i, n in enumerate(o)) <= budget * (1 - 4 / 2000)]
    found = additive_allocate(losses, costs, budget)
    if not fits:
        assert found is None or sum(costs[i][n] for i, n in enumerate(found)) <= budget
        return
    assert found is not None
    assert sum(costs[i][n] for i, n in enumerate(found)) <= budget
    best = min(sum(losses[i][n] for i, n in enumerate(o)) for o in fits)
    assert sum(losses[i][n] for i, n in enumerate(found)) <= best + 1e-9


def test_the_dynamic_program_says_when_nothing_fits() -> None:
    assert additive_allocate([[1.0]], [[5.0]], 4.0) is None
    assert additive_allocate([[1.0, 2.0]], [[5.0, 0.0]], 0.0) == [1]


def problem(ratio: float, curves: bool) -> Problem:
    """A chain of three layers: each costs (slots before) x (slots after)."""
    atoms = [Atom(n) for n in (32, 64, 48)]
    generator = np.random.default_rng(0)
    weights = (0.01, 1.0, 5.0)
    candidates = [
        Candidate(
            a,
            size,
            generator.random(size) * w,
            4,
            8,
            curve={n: w * (1 - n / size) ** 2 for n in range(1, size + 1)} if curves else None,
            turn=w / 10,
        )
        for a, w in zip(atoms, weights, strict=True)
        for size in [at(a.size, 0)]
    ]
    ends = [(None, atoms[0]), (atoms[0], atoms[1]), (atoms[1], atoms[2]), (atoms[2], None)]
    terms = []
    for pair in ends:
        owned = tuple(a for a in pair if a is not None)
        terms.append(Term(lambda kept, o=owned: float(10 * np.prod([kept.get(a, a.size) for a in o])), owned))  # type: ignore[misc]
    cost = CostModel("macs", terms)

    def joint(counts: Mapping[Atom, int], share: float = 1.0) -> float:
        lost = [w * (1 - counts[c.atom] / c.size) for c, w in zip(candidates, weights, strict=True)]
        return float(sum(one**2 for one in lost) + 3 * lost[1] * lost[2])

    return Problem(candidates, cost, (1 - ratio) * cost.total({}), joint)


@pytest.mark.parametrize("curves", [False, True])
@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.8])
@pytest.mark.parametrize("name", ALLOCATORS)
def test_budgets_steps_and_floors_hold(name: str, ratio: float, curves: bool) -> None:
    asked = problem(ratio, curves)
    found = ALLOCATORS[name].allocate(asked)
    assert found.reached
    assert found.cost == pytest.approx(asked.cost.total(found.counts))
    assert found.cost <= asked.budget
    assert found.cost >= 0.85 * asked.budget, "most of the budget is used"
    for c in asked.candidates:
        assert found.counts[c.atom] in c.counts()
        assert found.counts[c.atom] >= c.floor


@pytest.mark.parametrize("name", ALLOCATORS)
def test_a_budget_out_of_reach_gives_the_floor(name: str) -> None:
    asked = problem(0.999, curves=True)
    found = ALLOCATORS[name].allocate(asked)
    assert not found.reached
    assert all(found.counts[c.atom] == c.counts()[0] for c in asked.candidates)


@pytest.mark.parametrize("name", ALLOCATORS)
def test_nothing_to_remove_removes_nothing(name: str) -> None:
    asked = problem(0.0, curves=True)
    assert ALLOCATORS[name].allocate(asked).counts == {c.atom: c.size for c in asked.candidates}
    nothing = replace(asked, candidates=[], joint=lambda counts, share=1.0: 0.0)
    assert ALLOCATORS[name].allocate(nothing).counts == {}


@pytest.mark.parametrize("ratio", [0.2, 0.5, 0.7])
def test_measured_curves_lose_less_than_an_even_cut(ratio: float) -> None:
    asked = problem(ratio, curves=True)
    losses = [
        sum(losses_of(c)[allocate(asked).counts[c.atom]] for c in asked.candidates)
        for allocate in (distortion, uniform)
    ]
    assert losses[0] < 0.7 * losses[1]


def test_scores_stand_in_for_a_curve_that_was_not_measured() -> None:
    candidate = Candidate(Atom(4), 4, np.array([1.0, 2.0, 3.0, 4.0]), 1, 1)
    assert losses_of(candidate) == pytest.approx({1: 0.6, 2: 0.3, 3: 0.1, 4: 0.0})


def test_curves_never_fall_as_slots_go() -> None:
    assert monotone({8: 0.0, 6: 0.3, 4: 0.2, 2: 0.5}) == {8: 0.0, 6: 0.3, 4: 0.3, 2: 0.5}


def test_levels_are_counts_it_may_keep_down_to_the_floor() -> None:
    candidate = Candidate(Atom(64), 64, np.ones(64), 8, 7)
    assert levels_of(candidate) == [48, 32, 16, 8]


def test_curves_of_a_real_model_find_the_layer_that_matters_least(tmp_path: Path) -> None:
    """Of two hidden layers in parallel, one adds almost nothing: it is cut, and the prediction says so."""
    text = """g (float[n,6] x) => (float[n,3] y) {
      a = Gemm(x, w1) b = Relu(a) c = Gemm(b, v1)
      d = Gemm(x, w2) e = Relu(d) f = Gemm(e, v2) y = Add(c, f) }"""
    weights = {"w1": normal(6, 32, seed=1), "w2": normal(6, 32, seed=2), "v1": normal(32, 3, seed=3)}
    analysis = analysed(text, {**weights, "v2": 0.001 * normal(32, 3, seed=4)})
    samples = Samples(({"x": normal(128, 6, seed=5)},), True)
    given = compilation(folder=tmp_path, samples=samples, calib="samples", align=1)
    found = choose(given, analysis, find_groups(analysis), 0.4)
    assert found.method == {"criterion": "obs", "allocator": "rehearsed", "curves": True, "tried": "joint"}
    kept = sorted(int(slots.sum()) for slots in found.keep.values())
    assert kept[0] <= 8
    assert found.predicted is not None
    assert found.predicted < 0.05
    assert found.advised is None
    harsh = choose(given, analysis, find_groups(analysis), 0.88)
    assert harsh.predicted is not None
    assert harsh.predicted > POOR
    assert harsh.advised is not None
    assert 0.4 <= harsh.advised < 0.88


def test_a_rehearsal_corrects_what_curves_advise() -> None:
    """Curves know no repair: their sum of 0.9 advises less, a rehearsal that found a twentieth of it does not."""
    atom = Atom(20)
    candidate = Candidate(atom, 20, np.ones(20), 1, 1, curve={20: 0.0, 10: 0.5, 1: 1.8})
    cost = CostModel("slots", [Term(lambda kept: float(kept.get(atom, 20)), (atom,))])
    asked, counts = Problem([candidate], cost, 4.0), {atom: 4}
    choice = Choice({}, 0.8, 20.0, 4.0, reached=True)
    alone = foreseen(choice, asked, counts)
    assert alone.predicted is not None
    assert alone.predicted > POOR
    assert alone.advised == 0.4
    assert foreseen(replace(choice, rehearsed=0.05), asked, counts).advised is None
    worse = foreseen(replace(choice, rehearsed=0.5), asked, counts)
    assert worse.advised is not None
    assert worse.advised > 0.4


def test_where_curves_would_take_too_long_a_threshold_over_fluctuations_stands_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "g (float[n,6] x) => (float[n,3] y) { a = Gemm(x, w1) b = Relu(a) y = Gemm(b, w2) }"
    analysis = analysed(text, {"w1": normal(6, 32), "w2": normal(32, 3)})
    samples = Samples(({"x": normal(128, 6, seed=5)},), True)
    monkeypatch.setattr("sparsecc.allocators.output_error.WORK", 1.0)
    given = compilation(folder=tmp_path, samples=samples, calib="samples", align=1)
    found = choose(given, analysis, find_groups(analysis), 0.4)
    assert found.method == {"criterion": "fluctuation", "allocator": "global", "curves": False}
    assert found.reached
    assert found.predicted is None


def test_rounding_to_units_never_breaks_the_budget() -> None:
    assert additive_allocate([[0.0, 1.0]] * 2, [[50.01, 0.0]] * 2, 100.0) in ([0, 1], [1, 0])
