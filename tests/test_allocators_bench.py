"""Variants of a model run from where they differ: the same losses as of whole runs, at a part of the work.

And how outputs are compared, on which samples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from sparsecc.allocators.output_error import WORK, Bench, affordable, macs_of_sample
from sparsecc.axes.algebra import Keep
from sparsecc.cost.model import macs_model
from sparsecc.data.samples import Samples
from sparsecc.graph.analysis import Analysis, analyse
from sparsecc.graph.groups import find_groups
from sparsecc.loading.models import load_ir
from sparsecc.loading.normalise import normalise
from sparsecc.loss.measure import Reference
from sparsecc.reference.masked_channels import masked
from sparsecc.runtime.runner import Feeds
from sparsecc.runtime.segments import Walk
from tests.repair_models import analysed, mlp, normal

MODELS = Path(__file__).parents[1] / "models"
DIGITS = ("digits_resnet", "digits_vit", "digits_lstm")
BATCH = Samples(({"x": normal(128, 6, seed=9)},), True)
FEEDS = ({"x": normal(16, 6, seed=1)}, {"x": normal(16, 6, seed=2)})
WEIGHTS = {
    "w1": normal(6, 8),
    "w2": normal(8, 12, seed=3),
    "w3": normal(12, 3, seed=4),
    "w4": normal(8, 8, seed=5),
}
TWO_OUTPUTS = """g (float[n,6] x) => (float[n,3] y, float[n,3] early) {
    a = MatMul(x, w1) h = Relu(a) e = MatMul(x, side) early = Tanh(e)
    b = MatMul(h, w2) k = Relu(b) y = MatMul(k, w3) }"""
BODY = """g (float[n,6] x, bool c) => (float[n,3] y) {
    a = MatMul(x, w1) h = Relu(a)
    i = If(c) <then_branch = t () => (float[n,8] p) { p = MatMul(h, w4) },
               else_branch = e () => (float[n,8] q) { r = Relu(h) q = MatMul(r, w4) }>
    b = MatMul(i, w2) k = Relu(b) y = MatMul(k, w3) }"""


def cuts(analysis: Analysis) -> list[Keep]:
    """Half of each free group, one group at a time."""
    free = [g for g in find_groups(analysis) if g.is_free]
    assert free
    return [{g.atom: np.arange(g.size) % 2 == 0} for g in free]


def case(name: str) -> tuple[Analysis, Samples]:
    if name == "two outputs":
        return analysed(TWO_OUTPUTS, {**WEIGHTS, "side": normal(6, 3, seed=6)}), Samples(FEEDS, True)
    if name == "body":
        fed = tuple({**f, "c": np.array(flag)} for f, flag in zip(FEEDS, (True, False), strict=True))
        return analysed(BODY, WEIGHTS), Samples(fed, True)
    analysis = analyse(normalise(load_ir(MODELS / f"{name}.onnx")))
    (given,) = analysis.model.graph.inputs
    generator = np.random.default_rng(0)
    shape = [8 if not isinstance(size, int) or i == 0 else size for i, size in enumerate(given.shape or ())]
    return analysis, Samples(({given.name or "": generator.random(shape, np.float32)},), True)


@pytest.mark.parametrize("name", [*DIGITS, "two outputs", "body"])
@pytest.mark.parametrize("backwards", [False, True], ids=["in order", "out of order"])
def test_a_branch_loses_what_the_whole_run_does(name: str, backwards: bool, tmp_path: Path) -> None:
    analysis, samples = case(name)
    variants = [masked(analysis, cut) for cut in cuts(analysis)]
    bench, whole = (Bench(analysis.model, samples, tmp_path / part, 1) for part in ("a", "b"))
    for variant in sorted(variants, key=bench.start_of, reverse=backwards):
        wanted = whole.moved(variant)
        assert wanted > 0
        assert bench.branched([variant]) == pytest.approx([wanted], rel=1e-5)


@pytest.mark.parametrize("name", [*DIGITS, "two outputs", "body"])
def test_the_levels_of_a_curve_share_a_session(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a cut masks is an input there; a body is not compared, so its variants have sessions of their own."""
    analysis, samples = case(name)
    group = max((g for g in find_groups(analysis) if g.is_free), key=lambda g: g.size)
    variants = [masked(analysis, {group.atom: np.arange(group.size) >= n}) for n in (1, group.size // 2)]
    bench, whole = (Bench(analysis.model, samples, tmp_path / part, 1) for part in ("a", "b"))
    wanted = [whole.moved(variant) for variant in variants]
    opened: list[int] = []
    run = Walk.branch

    def counted(walk: Walk, variant: ir.Model, nodes: Sequence[ir.Node], *more: Any) -> Iterator[list[Feeds]]:
        opened.extend([len(more[1])] if variant is not analysis.model and len(more) > 1 else [])
        return run(walk, variant, nodes, *more)

    monkeypatch.setattr(Walk, "branch", counted)
    assert bench.branched(variants) == pytest.approx(wanted, rel=1e-4)
    assert opened == ([1, 1] if name == "body" else [2])


@pytest.mark.parametrize("name", ["digits_resnet", "digits_vit"])
def test_in_order_no_whole_model_is_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    analysis, samples = case(name)
    bench = Bench(analysis.model, samples, tmp_path, 1)
    variants = sorted((masked(analysis, cut) for cut in cuts(analysis)), key=bench.start_of)
    monkeypatch.setattr(bench, "moved", lambda variant: pytest.fail("ran all of it"))
    places = []
    for variant in variants:
        bench.branched([variant])
        places.append(bench.start_of(variant))
    assert places[-1] > len(list(analysis.model.graph)) / 2


def test_a_cut_that_no_output_sees_moves_nothing(tmp_path: Path) -> None:
    analysis, samples = case("two outputs")
    bench = Bench(analysis.model, samples, tmp_path, 1)
    assert bench.start_of(analysis.model.clone()) == len(list(analysis.model.graph))
    assert bench.branched([analysis.model.clone()]) == [0.0]


def test_a_body_counts_as_different_as_names_in_it_are_not_compared(tmp_path: Path) -> None:
    analysis, samples = case("body")
    bench = Bench(analysis.model, samples, tmp_path, 1)
    assert bench.start_of(analysis.model.clone()) == [n.op_type for n in analysis.model.graph].index("If")


@pytest.mark.parametrize(("share", "rows"), [(1.0, 128), (1 / 8, 16), (1e-6, 1)])
def test_a_share_of_the_samples_is_a_part_of_a_batch(share: float, rows: int, tmp_path: Path) -> None:
    leading = Bench(mlp().model, BATCH, tmp_path, 1)._leading(share)
    assert [batch["x"].shape for batch in leading] == [(rows, 6)]


@pytest.mark.parametrize(("work", "number"), [(8, 8), (50, 50), (1e3, 128)])
def test_no_more_samples_run_than_the_work_allows(work: float, number: int) -> None:
    """Of a batch of 128, a part: at least FEWEST, and at most all."""
    analysis = mlp()
    per_sample = macs_model(analysis).total({}) / 2  # the cost model's inputs hold two
    chosen = affordable(analysis, BATCH, 3.0, 128, work * 3 * per_sample + 1)
    assert chosen is not None
    assert chosen.number == number
    assert affordable(analysis, BATCH, WORK, 128) is None


def test_samples_of_any_length_count_by_their_mean() -> None:
    """Not by the first, which is the shortest where lines are sorted."""
    lines = Samples(tuple({"x": normal(1, 3, 8, length)} for length in (16, 64, 640)), True)
    assert macs_of_sample(300.0, {"x": (2, 3, 8, 16)}, lines) == pytest.approx(300.0 / 2 * 240 / 16)
    assert macs_of_sample(300.0, {"x": (2, 3, 8, 16)}, Samples((), True)) == 150.0


def test_a_batch_of_a_fixed_size_is_never_cut(tmp_path: Path) -> None:
    text = "g (float[128,6] x) => (float[128,3] y) { a = Gemm(x, w1) b = Relu(a) y = Gemm(b, w2) }"
    model = analysed(text, {"w1": normal(6, 8), "w2": normal(8, 3)}).model
    two = Samples((*BATCH.batches, *BATCH.batches), True)
    leading = Bench(model, two, tmp_path, 1)._leading(1 / 8)
    assert [batch["x"].shape for batch in leading] == [(128, 6)]


def test_outputs_are_compared_over_all_batches_at_once() -> None:
    """Batches differ in length and mean; of three outputs one moves, one stays, and one holds no floats."""
    ours = [
        {"y": normal(n, 3, seed=n) + n, "z": np.full((n, 1), n, np.float32), "i": np.arange(n)}
        for n in (4, 1, 7)
    ]
    theirs = [
        {**batch, "y": batch["y"] + normal(*batch["y"].shape, seed=20), "i": -batch["i"]} for batch in ours
    ]
    y, found = (np.concatenate([batch["y"] for batch in side]) for side in (ours, theirs))
    wanted = np.mean((found - y) ** 2) / y.var(0).mean()
    assert Reference(ours).loss(theirs) == pytest.approx(wanted / 2, rel=1e-4)
    assert Reference(ours).loss(ours) == 0


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_outputs_that_are_no_numbers_or_of_another_shape_are_infinitely_far(value: float) -> None:
    ours, theirs = [{"y": normal(4, 3)}], [{"y": normal(4, 3)}]
    assert Reference(ours).loss([{"y": theirs[0]["y"][:3]}]) == np.inf
    theirs[0]["y"][1, 2] = value
    assert Reference(ours).loss(theirs) == np.inf
    assert Reference([{"y": np.full((4, 3), value)}]).loss(ours) == np.inf
