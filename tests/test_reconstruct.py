"""Repair: the algebra, and what it does to whole models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import sparsecc
from sparsecc.calibrate.moments import Moments
from sparsecc.data.samples import Samples
from sparsecc.graph.analysis import Analysis
from sparsecc.graph.groups import find_groups
from sparsecc.graph.rewrite import remove
from sparsecc.reconstruct import blockwise as wide
from sparsecc.reconstruct import solve
from sparsecc.reconstruct.damping import DAMPINGS, LEAST, MANY, Halves, damping_for, in_second_half
from sparsecc.reconstruct.layerwise import Repair, repair
from sparsecc.reconstruct.stage import kept_values
from sparsecc.runtime.segments import MEMORY
from sparsecc.runtime.session import open_session
from tests.compilations import compilation
from tests.repair_models import analysed, mlp, normal

ROWS = 400


def moments_of(rows: np.ndarray, targets: np.ndarray) -> Moments:
    moments = Moments.empty(1, rows.shape[1], targets.shape[1])
    for part in np.split(np.arange(len(rows)), 4):
        moments.add(rows[part][None], targets[part][None])
    return moments


@pytest.fixture
def problem() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Correlated inputs, the targets of a wider layer, and the weights of what is kept."""
    wide = normal(ROWS, 12).astype(np.float64) @ normal(12, 12, seed=1).astype(np.float64) + 0.5
    weight = normal(5, 12, seed=2).astype(np.float64)
    return wide[:, :7], wide @ weight.T, weight[:, :7]


def test_the_refit_is_the_least_squares_optimum(problem: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    rows, targets, weight = problem
    moments = moments_of(rows, targets)
    new = solve.refit(weight[None], moments, intercept=True, damping=1e-12)
    bias = solve.bias_for(new, moments)
    ones = np.hstack([rows, np.ones((ROWS, 1))])
    best = np.sum((ones @ np.linalg.lstsq(ones, targets, rcond=None)[0] - targets) ** 2)
    found = np.sum((rows @ new[0].T + bias[0] - targets) ** 2)
    assert found == pytest.approx(best, rel=1e-6)
    assert solve.relative_error(new, bias, moments) == pytest.approx(
        found / np.sum((targets - targets.mean(0)) ** 2), rel=1e-6
    )


def test_without_intercept_the_refit_is_the_optimum_through_zero(
    problem: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    rows, targets, weight = problem
    new = solve.refit(weight[None], moments_of(rows, targets), intercept=False, damping=1e-12)
    np.testing.assert_allclose(new[0].T, np.linalg.lstsq(rows, targets, rcond=None)[0], rtol=1e-5, atol=1e-7)


def halves_of(rows: np.ndarray, targets: np.ndarray) -> Halves:
    halves = Halves.empty(1, rows.shape[1], targets.shape[1])
    halves.add(rows[None], targets[None], np.arange(len(rows)) % 2 == 1)
    return halves


@pytest.mark.parametrize(("number", "noise", "is_damped"), [(60, 3.0, True), (4000, 0.05, False)])
def test_few_samples_of_what_inputs_hardly_explain_are_damped(
    number: int, noise: float, is_damped: bool
) -> None:
    generator = np.random.default_rng(0)
    wanted = generator.standard_normal((5, 40))
    weight = (wanted + 0.3 * generator.standard_normal((5, 40)))[None]

    def drawn(count: int) -> tuple[np.ndarray, np.ndarray]:
        rows = generator.standard_normal((count, 40))
        return rows, rows @ wanted.T + noise * generator.standard_normal((count, 5))

    halves, unseen = halves_of(*drawn(number)), moments_of(*drawn(4000))
    chosen = damping_for(weight, halves, intercept=True)
    assert (chosen >= 0.15) == is_damped

    def error(damping: float) -> float:
        new = solve.refit(weight, halves.whole(), intercept=True, damping=damping)
        return solve.relative_error(new, solve.bias_for(new, halves.whole()), unseen)

    assert error(chosen) < 0.8 * error(LEAST) if is_damped else chosen == LEAST


def drawn_halves(number: int, columns: int, outputs: int, noise: float) -> tuple[np.ndarray, Halves]:
    """A weight, and halves of correlated inputs with means of their own and noisy targets of another weight."""
    generator = np.random.default_rng(number)
    mixing = generator.standard_normal((columns, columns)) / columns**0.5
    rows = generator.standard_normal((number, columns)) @ mixing + 2.0 * generator.standard_normal(columns)
    weight = generator.standard_normal((outputs, columns))
    wanted = weight + 0.3 * generator.standard_normal((outputs, columns))
    targets = rows @ wanted.T + noise * columns**0.5 * generator.standard_normal((number, outputs))
    return weight[None], halves_of(rows, targets)


def unseen_error(weight: np.ndarray, halves: Halves, damping: float, intercept: bool, ways: int = 2) -> float:
    """What refits from one half miss of the other, each refit and each error computed as such."""
    total = 0.0
    for seen, unseen in ((halves.even, halves.odd), (halves.odd, halves.even))[:ways]:
        new = solve.refit(weight, seen, intercept=intercept, damping=damping)
        total += solve.relative_error(new, solve.bias_for(new, seen) if intercept else None, unseen)
    return total


@pytest.mark.parametrize("intercept", [True, False])
def test_the_damping_is_that_of_refits_tried_one_after_the_other(intercept: bool) -> None:
    chosen = set()
    for number, noise in ((30, 0.05), (30, 0.3), (50, 0.1), (80, 0.5), (200, 0.2), (200, 1.0), (900, 0.02)):
        weight, halves = drawn_halves(number, 24, 6, noise)
        errors = [unseen_error(weight, halves, damping, intercept) for damping in DAMPINGS]
        rises = [i for i in range(len(errors) - 1) if errors[i + 1] >= errors[i]]
        best = DAMPINGS[rises[0] if rises else -1]
        assert damping_for(weight, halves, intercept=intercept) == max(LEAST, best / 2), (number, noise)
        chosen.add(best)
    assert len(chosen) >= 3


@pytest.mark.parametrize("many", [1, MANY])
def test_small_outputs_beside_large_ones_tell_the_damping_too(many: int) -> None:
    """Boxes in pixels that inputs explain, scores from 0 to 1 that they hardly do: one damping for both."""
    draw = np.random.default_rng(3)
    rows = draw.standard_normal((60, 24))
    boxes, scores = 1000 * draw.standard_normal((4 * many, 24)), draw.standard_normal((4 * many, 24))
    far, near = rows @ boxes.T, rows @ scores.T + 30 * draw.standard_normal((60, 4 * many))
    large = damping_for(1.05 * boxes[None], halves_of(rows, far), intercept=True)
    small = damping_for(scores[None], halves_of(rows, near), intercept=True)
    weight = np.concatenate([1.05 * boxes, scores])[None]
    both = damping_for(weight, halves_of(rows, np.concatenate([far, near], axis=1)), intercept=True)
    assert large < both <= small


def test_a_few_sums_of_many_outputs_tell_the_damping_of_a_wide_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparsecc.reconstruct.damping.WIDE", 39)
    for number, noise in ((60, 0.3), (100, 0.1), (100, 0.3), (400, 0.3)):
        weight, halves = drawn_halves(number, 40, 2 * MANY, noise)
        errors = {d: unseen_error(weight, halves, d, True, ways=1) for d in DAMPINGS}
        chosen = damping_for(weight, halves, intercept=True)
        found = LEAST if chosen == LEAST else min(DAMPINGS, key=lambda damping: abs(damping - 2 * chosen))
        assert errors[found] < 1.03 * min(errors.values()) < errors[DAMPINGS[-1]]


def test_a_refit_of_what_rounding_left_indefinite_is_finite() -> None:
    inputs = np.diag([1.0, 1.0, -0.1])[None]
    found = solve.change(inputs, np.ones((1, 2, 3)), 1e-6)
    np.testing.assert_allclose(found[0], [[1.0, 1.0, -10.0]] * 2, rtol=1e-3)


def test_halves_are_of_whole_samples() -> None:
    picks = np.array([0, 3, 4, 7, 11])
    assert in_second_half(picks, 12, 3, 0, 9).tolist() == [False, False, True, True, False]
    assert in_second_half(picks, 12, 3, 3, 9).tolist() == [True, True, False, False, True]
    assert in_second_half(picks, 12, 1, 0, 1).tolist() == [False, False, False, True, True]


def test_a_repair_says_how_much_it_damped(tmp_path: Path) -> None:
    found = mended(mlp(), [1, 5], "reconstruct", {"x": normal(ROWS, 6, seed=9)}, tmp_path)
    assert LEAST <= found.layers[-1]["damping"] <= DAMPINGS[-1]


def test_nothing_to_mend_stays(problem: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    rows, _, weight = problem
    moments = moments_of(rows, rows @ weight.T)
    np.testing.assert_allclose(
        solve.refit(weight[None], moments, intercept=True, damping=0.01)[0], weight, rtol=1e-8, atol=1e-9
    )


def test_rescaling_gives_the_targets_variance(problem: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    rows, targets, weight = problem
    new = solve.rescaled(weight[None], moments_of(rows, targets))[0]
    scale = np.abs(new / weight).max(axis=1)
    free = (scale < 4) & (scale > 0.25)
    assert free.any()
    np.testing.assert_allclose((rows @ new.T).var(axis=0)[free], targets.var(axis=0)[free], rtol=1e-6)


def outputs(model: ir.Model, feeds: dict[str, np.ndarray]) -> np.ndarray:
    return next(iter(open_session(model, level="none").run(feeds).values()))


def mended(
    analysis: Analysis,
    slots: list[int],
    method: str,
    feeds: dict[str, np.ndarray],
    folder: Path,
    memory: int = MEMORY,
) -> Repair:
    """Remove slots of the only free group and repair in place."""
    group = next(g for g in find_groups(analysis) if g.is_free)
    keep = {group.atom: ~np.isin(np.arange(group.size), slots)}
    dense = analysis.model.clone()
    remove(analysis, keep)
    batches = (
        {n: a[: len(a) // 2] for n, a in feeds.items()},
        {n: a[len(a) // 2 :] for n, a in feeds.items()},
    )
    given, kept = compilation(folder=folder, working_memory=memory), kept_values(analysis, keep)
    return repair(given, dense, analysis.model, kept, Samples(batches, True), method)


def test_a_duplicated_channel_goes_for_free(tmp_path: Path) -> None:
    analysis, feeds = mlp(duplicate=True), {"x": normal(ROWS, 6, seed=9)}
    before = outputs(analysis.model, feeds)
    found = mended(analysis, [1], "reconstruct", feeds, tmp_path)
    error = np.abs(outputs(analysis.model, feeds) - before).max() / np.abs(before).max()
    assert analysis.model.graph.initializers["w2"].const_value.shape[0] == 7  # type: ignore[union-attr]
    assert error < 0.02  # the damping alone
    assert set(found.changed) == {"w2", "b2"}


def test_a_refit_in_parts_is_that_of_the_whole(problem: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    rows, targets, weight = problem
    odd = np.arange(ROWS) % 2 == 1
    identity, present = np.eye(5), np.ones(5)
    layer = wide.LayerPair(
        lambda chunk: weight[chunk].copy(),
        lambda chunk: identity[chunk],
        np.zeros(5),
        lambda: iter([(rows.astype(np.float32), targets.astype(np.float32), odd)]),
        *weight.shape,
    )
    found = wide.refit_in_parts(layer, present, rows=ROWS, memory=64 * 49)
    moments = moments_of(rows, targets)
    new = solve.refit(weight[None], moments, intercept=True, damping=found.damping)
    new = solve.rescaled(new, moments)
    bias = solve.bias_for(new, moments)
    np.testing.assert_allclose(found.weight, new[0], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found.bias, bias[0], rtol=1e-3, atol=1e-3)
    before = solve.relative_error(weight[None], present[None], moments)
    assert found.error(found.before) == pytest.approx(before, rel=1e-4)
    assert found.error(found.after) == pytest.approx(solve.relative_error(new, bias, moments), rel=1e-3)


def test_a_layer_refitted_in_parts_comes_out_about_as_one_refitted_whole(tmp_path: Path) -> None:
    feeds = {"x": normal(ROWS, 6, seed=9)}
    whole, parts = mlp(), mlp()
    told = mended(whole, [1, 5], "reconstruct", feeds, tmp_path)
    found = mended(parts, [1, 5], "reconstruct", feeds, tmp_path / "parts", memory=2 * 64 * 36)
    assert set(found.changed) == set(told.changed)
    for row, wanted in zip(found.layers, told.layers, strict=True):  # their damping differs
        assert row["error_before"] == pytest.approx(wanted["error_before"], rel=1e-3)
        assert row["error_after"] == pytest.approx(wanted["error_after"], rel=0.01)


def test_blocks_of_columns_in_turn_mend_most_of_what_all_at_once_do(tmp_path: Path) -> None:
    feeds = {"x": normal(ROWS, 6, seed=9)}
    best = mended(mlp(), [1, 5], "reconstruct", feeds, tmp_path).layers[-1]
    found = mended(mlp(), [1, 5], "reconstruct", feeds, tmp_path / "b", memory=2 * 64 * 9).layers[-1]
    assert found["error_before"] == pytest.approx(best["error_before"], rel=1e-3)
    assert best["error_after"] <= found["error_after"] < 0.7 * best["error_before"]


@pytest.mark.parametrize("method", ["bias", "bn", "reconstruct"])
def test_a_constant_channel_goes_for_free(method: str, tmp_path: Path) -> None:
    analysis, feeds = mlp(), {"x": normal(ROWS, 6, seed=9)}
    weight = analysis.model.graph.initializers["w1"]
    array = normal(6, 8, seed=1)
    array[:, 3] = 0
    weight.const_value = ir.Tensor(array, name="w1")
    bias = np.abs(normal(8, seed=2))
    analysis.model.graph.initializers["b1"].const_value = ir.Tensor(bias, name="b1")
    before = outputs(analysis.model, feeds)
    mended(analysis, [3], method, feeds, tmp_path)
    np.testing.assert_allclose(outputs(analysis.model, feeds), before, rtol=1e-3, atol=1e-4)


RESIDUAL = """g (float[n,4,6,6] x) => (float[n,4,6,6] y) {
  a = Conv<pads=[1,1,1,1]>(x, w1) h = Relu(a) c = Conv<pads=[1,1,1,1]>(h, w2) y = Add(c, x) }"""


def residual() -> Analysis:
    return analysed(RESIDUAL, {"w1": normal(8, 4, 3, 3), "w2": normal(4, 8, 3, 3, seed=1)})


def test_each_method_comes_closer_to_the_dense_model(tmp_path: Path) -> None:
    feeds = {"x": normal(64, 4, 6, 6, seed=2)}
    dense = outputs(residual().model, feeds)
    errors = []
    for method in ("bias", "reconstruct"):
        analysis = residual()
        mended(analysis, [0, 5], method, feeds, tmp_path / method)
        errors.append(float(np.mean((outputs(analysis.model, feeds) - dense) ** 2)))
    analysis = residual()
    group = next(g for g in find_groups(analysis) if g.is_free)
    remove(analysis, {group.atom: ~np.isin(np.arange(8), [0, 5])})
    plain = float(np.mean((outputs(analysis.model, feeds) - dense) ** 2))
    assert errors[1] < 0.9 * errors[0] < errors[0] < plain


def test_repair_gives_the_same_bytes(tmp_path: Path) -> None:
    feeds = {"x": normal(64, 4, 6, 6, seed=2)}
    made = []
    for run in ("a", "b"):
        analysis = residual()
        mended(analysis, [0, 5], "reconstruct", feeds, tmp_path / run)
        made.append(ir.to_proto(analysis.model).SerializeToString())
    assert made[0] == made[1]


def test_a_product_with_a_bias_behind_it_is_repaired_with_it(tmp_path: Path) -> None:
    text = (
        "g (float[n,6] x) => (float[n,3] y) { a = MatMul(x, w1) h = Relu(a) c = MatMul(h, w2) y = Add(c, b) }"
    )
    analysis = analysed(
        text, {"w1": normal(6, 8, seed=1), "w2": normal(8, 3, seed=3), "b": normal(3, seed=4)}
    )
    found = mended(analysis, [2], "reconstruct", {"x": normal(ROWS, 6, seed=9)}, tmp_path)
    assert set(found.changed) == {"w2", "b"}


def test_a_batch_norm_moves_with_its_input(tmp_path: Path) -> None:
    text = """g (float[n,4,5,5] x) => (float[n,4,5,5] y) {
      a = Conv(x, w1) h = Relu(a) s = ReduceSum<keepdims=1>(h, axes) t = Mul(s, x)
      y = BatchNormalization(t, g, b, m, v) }"""
    weights = {
        "w1": np.abs(normal(8, 4, 1, 1)), "axes": np.array([1]), "g": np.ones(4, np.float32),
        "b": np.zeros(4, np.float32), "m": np.zeros(4, np.float32), "v": np.ones(4, np.float32),
    }  # fmt: skip
    analysis, feeds = analysed(text, weights), {"x": np.abs(normal(64, 4, 5, 5, seed=2))}
    before = outputs(analysis.model, feeds)
    found = mended(analysis, [0, 1, 2, 3], "bn", feeds, tmp_path)
    assert {"m", "v"} <= set(found.changed)
    after = outputs(analysis.model, feeds)
    np.testing.assert_allclose(after.std(axis=(0, 2, 3)), before.std(axis=(0, 2, 3)), rtol=1e-2)


def test_a_compile_with_samples_keeps_the_accuracy(models_dir: Path, tmp_path: Path) -> None:
    data = models_dir / "digits.py"
    made = sparsecc.compile(
        models_dir / "digits_resnet.onnx", ratio=0.5, calib=f"{data}:calibration",
        evaluate=f"{data}:accuracy", allocator="uniform", criterion="l2", measure=False,
        output=tmp_path / "out",
    )  # fmt: skip
    assert made.report["accuracy"]["after"] > made.report["accuracy"]["before"] - 0.02
    assert made.plan["repaired"]
    checks = sparsecc.verify(tmp_path / "out", model=models_dir / "digits_resnet.onnx")
    assert checks["ok"]
