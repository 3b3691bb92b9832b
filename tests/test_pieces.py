"""Convolutions see whole axes: groups that lie side by side on one are aligned by their sum."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sparsecc
from sparsecc.allocators.base import Candidate, Problem, Selection
from sparsecc.allocators.pieces import Pieces, aligned
from sparsecc.axes.algebra import Atom
from sparsecc.cost.model import CostModel, slots_model
from sparsecc.report.types_used import outside_blocks
from tests.repair_models import normal
from tests.test_loading import saved

PADDED = """<ir_version: 8, opset_import: ["" : 17]>
g (float[n,3,8,8] x) => (float[n,5] y) <int64[8] wider = {0,8,0,0,0,8,0,0}> {
    a = Conv<pads = [1,1,1,1]>(x, w1) r = Relu(a) b = Conv<pads = [1,1,1,1]>(r, w2) s = Add(b, r) t = Relu(s)
    p = Pad(t, wider) c = Conv<pads = [1,1,1,1]>(t, w3) d = Relu(c) e = Conv<pads = [1,1,1,1]>(d, w4)
    u = Add(e, p) v = Relu(u) f = Conv<pads = [1,1,1,1]>(v, w5) h = Relu(f) i = Conv<pads = [1,1,1,1]>(h, w6)
    j = Add(i, v) k = Relu(j) z = GlobalAveragePool(k) q = Flatten(z) y = MatMul(q, w7) }"""
"""A residual net whose shortcut pads channels on, as those for CIFAR do: 16, then 8 + 16 + 8 side by side."""


def padded(folder: Path) -> Path:
    shapes = [(16, 3), (16, 16), (32, 16), (32, 32), (32, 32), (32, 32)]
    weights = {f"w{i + 1}": normal(*shape, 3, 3, seed=i) for i, shape in enumerate(shapes)}
    return saved(folder / "m.onnx", PADDED, **weights, w7=normal(32, 5, seed=9))


@pytest.mark.parametrize("ratio", [0.4, 0.5])
def test_the_loss_of_aligned_pieces_is_foreseen_between_the_steps_of_curves(
    tmp_path: Path, ratio: float
) -> None:
    samples = normal(16, 3, 8, 8, seed=4)
    options: dict[str, Any] = {"allocator": "distortion", "recover": "none", "dry_run": True}
    made = sparsecc.compile(padded(tmp_path), ratio=ratio, calib=samples, **options)
    kept = {group["kept"] % 4 for group in made.report["groups"]}
    assert kept - {0}  # or this tests nothing
    chosen = next(one["facts"] for one in made.report["passes"] if one["name"] == "choose")
    assert chosen["predicted_error"] > 0


@pytest.mark.parametrize("ratio", [0.2, 0.4, 0.6])
def test_a_stream_of_pieces_is_aligned_as_a_whole(tmp_path: Path, ratio: float) -> None:
    made = sparsecc.compile(padded(tmp_path), dry_run=True, ratio=ratio, metric="params")
    tensors = made.plan["tensors"]
    widths = [
        len(tensors.get(w, {}).get(axis, {"keep": range(32)})["keep"])
        for w, axis in (("w5", "1"), ("w6", "0"))
    ]
    assert widths[0] == widths[1]
    assert widths[0] % 8 == 0
    assert made.report["removed"]["share"] >= ratio


def problem(budget: float) -> tuple[Problem, list[Candidate]]:
    """Pieces of 8, 16 and 8 slots, and a group of 32 on its own; later slots score less."""
    atoms = [Atom(n) for n in (8, 16, 8, 32)]
    candidates = [
        Candidate(a, n, np.arange(n, 0.0, -1), 2, 1) for a, n in zip(atoms, (8, 16, 8, 32), strict=True)
    ]
    cost: CostModel = slots_model(None, atoms)  # type: ignore[arg-type]  # it asks for the atoms alone
    return Problem(candidates, cost, budget), candidates


@pytest.mark.parametrize(("budget", "total"), [(4.0, 32), (3.0, 24)])
def test_sums_go_up_where_the_budget_allows_it_else_down(budget: float, total: int) -> None:
    given, (left, own, right, alone) = problem(budget)
    counts = {left.atom: 6, own.atom: 16, right.atom: 8, alone.atom: 8}
    before = Selection(counts, given.cost.total(counts), True)
    axes = [Pieces((own.atom,), 0, 8), Pieces((left.atom, own.atom, right.atom), 0, 8)]
    after = aligned(given, before, axes)
    assert sum(after.counts[c.atom] for c in (left, own, right)) == total
    assert after.counts[own.atom] == 16  # an axis of its own elsewhere
    assert after.cost == pytest.approx(given.cost.total(after.counts))
    assert after.cost <= budget or total == 24


def test_the_nearest_multiple_is_paid_for_by_groups_elsewhere() -> None:
    given, (left, own, right, alone) = problem(3.0)
    counts = {left.atom: 6, own.atom: 16, right.atom: 8, alone.atom: 16}
    before = Selection(counts, given.cost.total(counts), True)
    tight = replace(given, budget=before.cost)
    after = aligned(
        tight, before, [Pieces((own.atom,), 0, 8), Pieces((left.atom, own.atom, right.atom), 0, 8)]
    )
    assert sum(after.counts[c.atom] for c in (left, own, right)) == 32
    assert after.counts[alone.atom] == 8  # two of eight slots cost as many as eight of 32
    assert after.cost <= tight.budget


def test_sums_that_are_aligned_stay() -> None:
    given, (left, own, right, _) = problem(3.0)
    counts = {c.atom: n for c, n in zip(given.candidates, (6, 12, 6, 8), strict=True)}
    before = Selection(counts, given.cost.total(counts), True)
    assert aligned(given, before, [Pieces((left.atom, own.atom, right.atom), 0, 8)]) is before


def test_a_census_with_misaligned_layers_is_warned_of() -> None:
    outside = {
        "node": "c",
        "in": 30,
        "out": 32,
        "group": 1,
        "effect": "outside",
        "reason": "30 input channels",
    }
    before, after = {"misaligned": [outside | {"effect": "padded"}]}, {"misaligned": [outside]}
    (told,) = outside_blocks(before, after)
    assert "1 convolutions are outside" in told
    assert "'c': 30 input channels" in told
    assert outside_blocks(after, after) == outside_blocks(None, before) == []
