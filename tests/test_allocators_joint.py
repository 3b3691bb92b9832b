"""Allocators that try cuts on samples or look at blocks: the identities behind each, and what they do on models."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparsecc.allocators import ALLOCATORS, Candidate, Problem
from sparsecc.allocators.angular import angles_between, angular, centred, turns
from sparsecc.allocators.dynamic_program import POWERS, distortion, least_sum, rehearsed
from sparsecc.allocators.erk import density, erk
from sparsecc.allocators.evolution import CHILDREN, GENERATIONS, PARTS, SURVIVORS, child, evolution
from sparsecc.allocators.joint_error import Joint
from sparsecc.allocators.output_error import Bench
from sparsecc.allocators.sequential import _Greedy, allowed, levels_of
from sparsecc.allocators.threshold import flap, global_threshold, standardised
from sparsecc.axes.algebra import Atom
from sparsecc.calibrate.layer_statistics import collect
from sparsecc.cost.model import CostModel, Term
from sparsecc.data.samples import Samples
from sparsecc.decide.channels import Choice, choose
from sparsecc.errors import InputError
from sparsecc.graph.analysis import Analysis
from sparsecc.graph.groups import find_groups
from sparsecc.reference.masked_channels import masked
from tests.compilations import compilation
from tests.repair_models import analysed, mlp, normal

BATCH = Samples(({"x": normal(128, 6, seed=9)},), True)
TRYING = ("sequential", "evolution")


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was tried before says nothing here."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def problem(sizes: tuple[int, ...], ratio: float, *, step: int = 1, seed: int = 0) -> Problem:
    """Groups of which every slot costs one; cutting neighbours together loses more than either alone."""
    generator = np.random.default_rng(seed)
    weight = generator.random(len(sizes))
    candidates = [
        Candidate(
            a, n, generator.random(n), step, 1, curve={k: w * (1 - k / n) ** 2 for k in range(1, n + 1)}
        )
        for n, w in zip(sizes, weight, strict=True)
        for a in [Atom(n)]
    ]
    cost = CostModel("channels", [_one_each(c) for c in candidates])

    def joint(counts: Mapping[Atom, int], share: float = 1.0) -> float:
        lost = [1 - counts[c.atom] / c.size for c in candidates]
        alone = sum(w * x**2 for w, x in zip(weight, lost, strict=True))
        return float(alone + 2 * sum(a * b for a, b in pairwise(lost)))

    return Problem(candidates, cost, (1 - ratio) * cost.total({}), joint)


def _one_each(c: Candidate) -> Term:
    return Term(lambda kept: float(kept.get(c.atom, c.size)), (c.atom,))


def chosen(analysis: Analysis, name: str, ratio: float, folder: Path, **given: object) -> Choice:
    options: dict[str, Any] = {"calib": "samples", "allocator": name, "align": 1, **given}
    asked = compilation(folder=folder, samples=BATCH, **options)
    return choose(asked, analysis, find_groups(analysis), ratio)


# The joint loss --------------------------------------------------------------------------------------


def joint_of(analysis: Analysis, folder: Path, *scores: np.ndarray) -> tuple[Joint, list[Candidate]]:
    groups = [g for g in find_groups(analysis) if g.is_free]
    candidates = [Candidate(g.atom, g.size, s, 1, 1) for g, s in zip(groups, scores, strict=True)]
    bench = Bench(analysis.model, BATCH, folder, 1)
    stats = collect(analysis, BATCH, folder)
    return Joint(analysis, candidates, stats, bench, lambda what, share: None), candidates


def test_a_duplicated_channel_costs_nothing_once_its_readers_are_refitted(tmp_path: Path) -> None:
    analysis = mlp(duplicate=True)
    joint, (candidate,) = joint_of(analysis, tmp_path, np.array([0.0, *range(1, 8)]))
    assert joint({candidate.atom: 7}) < 1e-3
    cut = masked(analysis, {candidate.atom: candidate.best(7)})
    assert Bench(analysis.model, BATCH, tmp_path, 1).moved(cut) > 0.01
    assert joint({candidate.atom: 8}) < 1e-10


def test_a_layer_that_reads_two_groups_is_refitted_for_both(tmp_path: Path) -> None:
    """Of two halves side by side with the same content, each covers for what goes from the other."""
    text = """g (float[n,6] x) => (float[n,3] y) {
      a = Gemm(x, w1) b = Relu(a) c = Gemm(x, w2) d = Relu(c) e = Concat<axis=1>(b, d) y = Gemm(e, v) }"""
    same = normal(6, 8, seed=1)
    analysis = analysed(text, {"w1": same, "w2": same.copy(), "v": normal(16, 3, seed=2)})
    rising = np.arange(8.0)
    joint, (a, b) = joint_of(analysis, tmp_path, rising, -rising)
    assert joint({a.atom: 4, b.atom: 4}) < 1e-2
    joint, (a, b) = joint_of(analysis, tmp_path, rising, rising)
    assert joint({a.atom: 4, b.atom: 4}) > 0.1


def test_what_was_tried_is_known_to_the_next_compile(tmp_path: Path) -> None:
    analysis = mlp()
    joint, (candidate,) = joint_of(analysis, tmp_path, np.arange(8.0))
    first = joint({candidate.atom: 4})
    joint.keep()
    again, (candidate,) = joint_of(analysis, tmp_path, np.arange(8.0))
    assert again({candidate.atom: 4}) == first
    assert (joint.runs, again.runs) == (1, 0)
    other, (candidate,) = joint_of(analysis, tmp_path, -np.arange(8.0))
    assert other({candidate.atom: 4}) != first
    assert other.runs == 1


@pytest.mark.parametrize("seed", range(4))
def test_of_sums_of_powers_the_one_that_loses_least_in_all_is_taken(seed: int) -> None:
    asked = problem((16, 24, 32, 8, 16, 64), 0.6, seed=seed)
    assert asked.joint is not None
    losses = [asked.joint(least_sum(asked, power).counts) for power in POWERS]
    assert asked.joint(distortion(asked).counts) == min(losses) < max(losses)
    assert distortion(replace(asked, joint=None)) == least_sum(asked)


@pytest.mark.parametrize("seed", range(4))
def test_where_curves_clearly_mislead_the_counts_of_one_threshold_are_taken(seed: int) -> None:
    asked = problem((16, 24, 32, 8, 16, 64), 0.6, seed=seed)
    wanted = global_threshold(asked).counts
    for loss, taken in ((0.5, True), (0.89, True), (0.91, False), (2.0, False)):
        told = replace(asked, joint=lambda counts, share=1.0, loss=loss: loss if counts == wanted else 1.0)
        found, by_curves = rehearsed(told), distortion(told)
        assert (found.counts == wanted) == taken
        assert found.beat == by_curves if taken else found == by_curves
    assert rehearsed(replace(asked, joint=None)) == least_sum(asked)


def test_larger_powers_spread_the_cuts() -> None:
    asked = problem((32,) * 6, 0.3)
    spread = [np.var(list(least_sum(asked, power).counts.values())) for power in POWERS]
    assert spread[0] > spread[1] > spread[2]


# Sequential ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("groups", [1, 7, 40])
def test_tolerances_multiply_to_the_whole_bound(groups: int) -> None:
    ends = [1 + allowed(0.9, (place + 1) / groups) for place in range(groups)]
    steps = [b / a for a, b in zip([1.0, *ends], ends, strict=False)]
    assert math.prod(steps) == pytest.approx(1.9, abs=1e-6)
    assert steps == pytest.approx([steps[0]] * groups)


@pytest.mark.parametrize("bound", [0.01, 0.2, 1.0])
def test_no_group_is_cut_beyond_the_bound_and_none_less_than_it_allows(bound: float) -> None:
    asked = problem((16, 24, 32, 8), 0.5)
    assert asked.joint is not None
    greedy = _Greedy(asked, asked.joint)
    counts = greedy.within(bound)
    assert asked.joint(counts) <= bound + 1e-12
    last = greedy.order[-1]
    levels = levels_of(last)
    place = levels.index(counts[last.atom])
    if place:
        assert asked.joint({**counts, last.atom: levels[place - 1]}) > bound
    assert greedy.within(4 * bound) != counts


def test_groups_come_in_the_order_of_rising_sensitivity() -> None:
    asked = problem((16,) * 5, 0.5)
    assert asked.joint is not None
    given, halves = (
        [(c.curve or {})[8] for c in cs] for cs in (asked.candidates, _Greedy(asked, asked.joint).order)
    )
    assert given != halves == sorted(given)


# Evolution -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [1, 4])
@pytest.mark.parametrize("part", PARTS)
def test_children_cost_no_more_than_the_budget_and_hardly_less(part: float, step: int) -> None:
    asked = problem((16, 24, 32, 8), 0.5, step=step)
    parent = distortion(asked)
    generator = np.random.default_rng(0)
    counts = set()
    for _ in range(50):
        found = child(asked, parent.counts, part, generator)
        assert asked.budget - step < found.cost <= asked.budget
        assert found.cost == asked.cost.total(found.counts)
        assert all(found.counts[c.atom] in c.counts() for c in asked.candidates)
        assert found.counts != parent.counts
        counts.add(tuple(found.counts.values()))
    assert len(counts) > 5


@pytest.mark.parametrize("seed", range(5))
def test_evolution_is_never_worse_than_its_start_and_mostly_better(seed: int) -> None:
    asked = problem((16, 24, 32, 8, 16), 0.5, seed=seed)
    assert asked.joint is not None
    start, found = asked.joint(distortion(asked).counts), asked.joint(evolution(asked).counts)
    assert found < 0.95 * start


def test_where_nothing_is_better_the_start_stays() -> None:
    asked = problem((16, 24, 32, 8, 16), 0.5)
    start = distortion(asked)
    worse = replace(asked, joint=lambda counts, share=1.0: float(counts != start.counts))
    assert evolution(worse) == start


def test_a_seed_gives_the_same_counts_and_another_other_ones() -> None:
    """The loss is noise, so that the way through it decides."""

    def noise(counts: Mapping[Atom, int], share: float = 1.0) -> float:
        return float(np.random.default_rng(list(counts.values())).random())

    asked = replace(problem((64,) * 12, 0.5), joint=noise)
    assert evolution(asked).counts == evolution(asked).counts
    assert evolution(asked).counts != evolution(replace(asked, seed=1)).counts
    parent = distortion(asked).counts
    one, other = (child(asked, parent, 1 / 4, np.random.default_rng(seed)).counts for seed in (0, 1))
    assert one != other


@pytest.mark.parametrize("name", TRYING)
def test_only_so_many_cuts_are_tried(name: str) -> None:
    asked, tried = problem((16, 24, 32, 8) * 10, 0.5), []

    def counting(counts: Mapping[Atom, int], share: float = 1.0) -> float:
        tried.append(share)
        assert asked.joint is not None
        return asked.joint(counts)

    ALLOCATORS[name].allocate(replace(asked, joint=counting))
    generations = len(PARTS) * GENERATIONS
    most = {"evolution": len(POWERS) + generations * (CHILDREN + SURVIVORS + 1), "sequential": 1 + 400}
    assert 0 < len(tried) <= most[name]


# Angular ---------------------------------------------------------------------------------------------


def test_angles_are_half_turns_between_channels() -> None:
    before = normal(2, 5, 3, 4)
    assert angles_between(before, 3 * before, [1]).shape == (2 * 3 * 4,)
    assert angles_between(before, 3 * before, [1]).max() < 1e-6
    assert angles_between(before, -before, [1]).min() > 1 - 1e-6
    assert angles_between(np.array([[1.0, 0.0]]), np.array([[1.0, 1.0]]), [1]) == pytest.approx([0.25])
    assert angles_between(np.zeros((1, 4)), np.ones((1, 4)), [1]) == pytest.approx([0.0])


def test_centred_turns_sum_to_nothing_so_that_the_mean_share_is_the_asked_one() -> None:
    found = centred(np.array([0.1, 0.4, 0.2, 0.5]))
    assert found.sum() == pytest.approx(0)
    assert np.abs(found).max() == 1
    assert not centred(np.full(3, 0.2)).any()
    asked = problem((1000, 1000, 1000), 0.1)
    turned = [replace(c, turn=t) for c, t in zip(asked.candidates, (0.1, 0.2, 0.6), strict=True)]
    counts = angular(replace(asked, candidates=turned)).counts
    shares = [counts[c.atom] / c.size for c in turned]
    assert shares == sorted(shares)
    assert shares[0] < 0.9 < shares[2]
    assert math.prod(shares) ** (1 / 3) == pytest.approx(0.9, abs=0.01)


def residual(scales: tuple[float, ...]) -> Analysis:
    """x + scale * f(x), once per scale, between a first and a last layer."""
    lines, weights = ["a0 = Gemm(x, w)"], {"w": normal(6, 8), "v": normal(8, 3, seed=1)}
    for i, scale in enumerate(scales):
        lines.append(
            f"h{i} = Gemm(a{i}, u{i}) r{i} = Relu(h{i}) f{i} = Gemm(r{i}, d{i}) a{i + 1} = Add(a{i}, f{i})"
        )
        weights |= {f"u{i}": normal(8, 16, seed=2 + i), f"d{i}": scale * normal(16, 8, seed=20 + i)}
    text = f"g (float[n,6] x) => (float[n,3] y) {{ {' '.join(lines)} y = Gemm(a{len(scales)}, v) }}"
    return analysed(text, weights)


def test_a_block_that_changes_nothing_turns_nothing_and_others_have_the_mean(tmp_path: Path) -> None:
    analysis = residual((0.3, 0.0, 0.1))
    groups = find_groups(analysis)
    found = turns(analysis, groups, BATCH, tmp_path, 1, 1 << 30)
    inside = [next(found[g.atom] for g in groups if (f"u{i}", 1) in g.members) for i in range(3)]
    assert inside[1] < 1e-6
    assert inside[0] > inside[2] > 0.01
    (outside,) = (found[g.atom] for g in groups if ("w", 1) in g.members)
    assert outside == pytest.approx(np.mean(inside))


def test_a_group_looks_at_the_innermost_block_around_it(tmp_path: Path) -> None:
    """Inside a block that turns a lot, one turns nothing."""
    text = """g (float[n,6] x) => (float[n,3] y) {
      a = Gemm(x, w) h = Gemm(a, p) i = Gemm(h, u) r = Relu(i) f = Gemm(r, d) b = Add(h, f)
      q = Gemm(b, o) c = Add(a, q) y = Gemm(c, v) }"""
    weights = {
        "w": normal(6, 8),
        "p": normal(8, 12),
        "u": normal(12, 16),
        "d": np.zeros((16, 12), np.float32),
    }
    analysis = analysed(text, {**weights, "o": normal(12, 8, seed=1), "v": normal(8, 3, seed=2)})
    groups = find_groups(analysis)
    found = turns(analysis, groups, BATCH, tmp_path, 1, 1 << 30)
    inner, outer = (next(found[g.atom] for g in groups if (n, 1) in g.members) for n in ("u", "p"))
    assert inner < 1e-6
    assert outer > 0.1


def test_a_model_without_blocks_is_cut_evenly(tmp_path: Path) -> None:
    groups = find_groups(mlp())
    assert set(turns(mlp(), groups, BATCH, tmp_path, 1, 1 << 30).values()) == {0.0}


# Thresholds and shapes -------------------------------------------------------------------------------


def test_flap_looks_at_deviations_and_global_at_means() -> None:
    """A constant added to the scores of a group moves nothing under the one, much under the other."""
    asked = problem((64, 64, 64), 0.5)
    first = asked.candidates[0]
    moved = replace(asked, candidates=[replace(first, scores=first.scores + 5), *asked.candidates[1:]])
    assert list(flap(moved).counts.values()) == list(flap(asked).counts.values())
    assert global_threshold(moved).counts[first.atom] != global_threshold(asked).counts[first.atom]
    found = standardised(np.array([1.0, 2.0, 3.0, np.inf]))
    assert found[:3].mean() == pytest.approx(0)
    assert found[:3].std() == pytest.approx(1)
    assert found[3] == np.inf
    assert not standardised(np.full(3, 2.0)).any()


def test_erk_keeps_what_the_shapes_say_and_the_whole_set_is_closed() -> None:
    shapes = [(64, 32, 3, 3), (640, 320, 3, 3), (1280, 640, 1, 1), (8, 4, 1, 1)]
    asked = problem((1000, 1000, 1000, 1000), 0.55)
    candidates = [replace(c, shapes=(s,)) for c, s in zip(asked.candidates, shapes, strict=True)]
    assert density(candidates[0]) == (64 + 32 + 3 + 3) / (64 * 32 * 9)
    found = erk(replace(asked, candidates=candidates))
    raw = np.array([density(c) for c in candidates])
    shares = np.array([found.counts[c.atom] / c.size for c in candidates])
    whole = shares == 1
    assert whole.any()
    assert not whole.all()
    assert shares[~whole] / raw[~whole] == pytest.approx((shares[~whole] / raw[~whole]).mean(), rel=0.02)
    assert (raw[whole] * (shares[~whole] / raw[~whole]).max() >= 0.98).all()
    assert found.cost == pytest.approx(asked.budget, rel=1e-3)


# On models -------------------------------------------------------------------------------------------


def test_a_model_too_large_to_be_tried_is_said_to_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparsecc.allocators.output_error.WORK", 1.0)
    with pytest.raises(InputError, match="too large for that: use global"):
        chosen(mlp(), "evolution", 0.5, tmp_path)


@pytest.mark.parametrize("criterion", ["obs", "l2"])
@pytest.mark.parametrize("name", [*TRYING, "angular", "flap", "erk"])
def test_every_allocator_goes_with_every_criterion(name: str, criterion: str, tmp_path: Path) -> None:
    found = chosen(residual((0.3, 0.0, 0.1)), name, 0.4, tmp_path, criterion=criterion)
    assert found.reached
    assert found.removed >= 0.4
    assert found.method["allocator"] == name
    assert (found.predicted is not None) == (name in TRYING)


@pytest.mark.parametrize("name", TRYING)
def test_the_block_that_changes_nothing_goes_first(name: str, tmp_path: Path) -> None:
    analysis = residual((0.3, 0.0, 0.3))
    found = chosen(analysis, name, 0.25, tmp_path)
    groups = find_groups(analysis)
    silent = next(g.atom for g in groups if ("u1", 1) in g.members)
    others = [slots.mean() for atom, slots in found.keep.items() if atom is not silent]
    assert found.keep[silent].mean() < min([1.0, *others])
    assert found.keep[silent].sum() <= 3


def test_progress_is_told(tmp_path: Path) -> None:
    told: list[tuple[str, float]] = []
    analysis = mlp()
    options: dict[str, Any] = {"calib": "samples", "allocator": "evolution", "align": 1}
    given = compilation(folder=tmp_path, samples=BATCH, **options)
    given.emit = lambda event: told.append((event["stage"], event["share"]))
    choose(given, analysis, find_groups(analysis), 0.5)
    stages = dict.fromkeys(stage.rstrip("0123456789 ") for stage, _ in told)
    assert list(stages) == ["statistics of layers", "scores of groups", "loss curve 1 of", "try cut"]
    shares = [share for _, share in told]
    assert 0 <= shares[0] < shares[-1] <= 1
    assert shares == sorted(shares)
