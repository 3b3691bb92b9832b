"""Scores: identities of each method on small planted models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from scipy.stats import spearmanr

from sparsecc.calibrate.channels import Channels
from sparsecc.calibrate.layer_statistics import Stats, collect
from sparsecc.criteria import CRITERIA, criterion_named
from sparsecc.criteria import obs as obs_module
from sparsecc.criteria.evidence import Evidence
from sparsecc.criteria.gradient import NAMES, OF_TWO_SETS
from sparsecc.criteria.mass import holders, often
from sparsecc.criteria.obs import DAMPING, greedy
from sparsecc.criteria.rank import mean_rank
from sparsecc.criteria.weights import SlotWeights
from sparsecc.data.samples import CalibrationSet, Samples
from sparsecc.graph.analysis import Analysis, analyse
from sparsecc.graph.groups import Group, find_groups
from sparsecc.loading.models import load_ir
from sparsecc.loading.normalise import normalise
from tests.repair_models import analysed, mlp, normal

ROWS = 500
SAMPLES = Samples(({"x": normal(ROWS, 6, seed=9)},), True)


def stats_of(analysis: Analysis, folder: Path) -> Stats:
    return collect(analysis, SAMPLES, folder)


def group_of(analysis: Analysis) -> Group:
    return next(g for g in find_groups(analysis) if g.is_free)


def scores(name: str, analysis: Analysis, folder: Path) -> np.ndarray:
    channels = Channels(analysis, SAMPLES, folder, threads=1, memory=1 << 28).of
    evidence = Evidence(SlotWeights(analysis), stats_of(analysis, folder), channels=channels)
    return CRITERIA[name].score(group_of(analysis), evidence)


def set_weight(analysis: Analysis, name: str, array: np.ndarray) -> None:
    analysis.model.graph.initializers[name].const_value = ir.Tensor(array, name=name)


@pytest.mark.parametrize("name", [name for name in CRITERIA if name not in (*NAMES, *OF_TWO_SETS)])
def test_every_criterion_gives_one_finite_score_per_slot_and_the_same_again(
    name: str, tmp_path: Path
) -> None:
    first = scores(name, mlp(), tmp_path / "a")
    assert first.shape == (8,)
    assert np.isfinite(first).all()
    np.testing.assert_array_equal(first, scores(name, mlp(), tmp_path / "b"))


@pytest.mark.parametrize("name", ["act_norm", "act_mass", "feature_rank", "wanda", "fluctuation", "obs"])
def test_a_dead_slot_goes_first(name: str, tmp_path: Path) -> None:
    analysis = mlp()
    bias = normal(8, seed=2)
    bias[5] = -100
    set_weight(analysis, "b1", bias)
    assert scores(name, analysis, tmp_path).argmin() == 5


@pytest.mark.parametrize(
    ("name", "first"), [("fluctuation", True), ("obs", True), ("act_norm", False), ("wanda", False)]
)
def test_a_constant_slot_is_free_where_a_bias_takes_it_up(name: str, first: bool, tmp_path: Path) -> None:
    analysis = mlp()
    weight, bias = normal(6, 8, seed=1), normal(8, seed=2)
    weight[:, 4], bias[4] = 0, 50
    set_weight(analysis, "w1", weight)
    set_weight(analysis, "b1", bias)
    found = scores(name, analysis, tmp_path)
    assert (found.argmin() == 4) == first
    assert (found.argmax() == 4) == (not first)


def test_the_holders_are_the_fewest_channels_that_hold_the_mass() -> None:
    peaks = np.abs(normal(40, 12, seed=3)).astype(np.float64)
    peaks[7] = 0
    found = holders(peaks, 0.8)
    held = np.where(found, peaks, 0).sum(axis=1)
    least = np.where(found, peaks, np.inf).min(axis=1)
    alive = peaks.sum(axis=1) > 0
    assert (held >= 0.8 * peaks.sum(axis=1))[alive].all()
    assert (held - least < 0.8 * peaks.sum(axis=1))[alive].all()
    assert (np.where(found, np.inf, peaks).min(axis=1) <= least).all()
    assert not found[7].any()
    np.testing.assert_array_equal(holders(peaks * 3.0, 0.8), found)


def test_a_slot_that_always_holds_the_mass_is_kept_whatever_its_readers_weigh(tmp_path: Path) -> None:
    analysis = mlp()
    bias = normal(8, seed=2)
    bias[2] = 1000
    set_weight(analysis, "b1", bias)
    found = scores("act_mass", analysis, tmp_path)
    assert found.argmax() == 2
    shares = Channels(analysis, SAMPLES, tmp_path, threads=1, memory=1 << 28).of(often)
    found = next(share for share in shares.values() if len(share) == 8)
    assert found[2] >= 1
    assert np.delete(found, 2).max() < 0.01


def test_the_rank_of_a_map_does_not_depend_on_its_size() -> None:
    """Maps of a known rank: products of two thin matrices, one of them a thousand times as large."""
    kinds = ((1, 1e3), (3, 1), (6, 1e-3))
    maps = np.stack(
        [scale * normal(20, 9, r, seed=r) @ normal(20, r, 7, seed=9 + r) for r, scale in kinds], axis=1
    )
    found = mean_rank(iter([maps[:12], maps[12:]]))
    np.testing.assert_array_equal(np.floor(found), [1, 3, 6])
    np.testing.assert_allclose(found, mean_rank(iter([maps])), rtol=1e-6)


def test_what_has_no_maps_is_ordered_by_energy() -> None:
    rows = np.abs(normal(50, 5, seed=4)) * np.array([3, 1, 0, 2, 5], np.float32)
    found = mean_rank(iter([rows]))
    assert list(np.argsort(-found)) == [4, 0, 3, 1, 2]
    assert found[2] == 0
    assert list(np.argsort(-mean_rank(iter([np.repeat(rows[:, :, None], 6, axis=2)])))) == [4, 0, 3, 1, 2]


def test_ranks_hardly_depend_on_the_images(tmp_path: Path) -> None:
    """What HRank rests on: half of the samples rank the channels of a real model as the other half does."""
    models = Path(__file__).parents[1] / "models"
    analysis = analyse(normalise(load_ir(models / "digits_resnet.onnx")))
    spec = f"{models / 'digits.py'}:calibration"
    samples = CalibrationSet(spec, analysis.model).samples
    seen, other = (
        Channels(analysis, half, tmp_path, threads=1, memory=1 << 28).of(mean_rank)
        for half in (
            Samples(tuple({k: v[i::2] for k, v in b.items()} for b in samples.batches), True) for i in (0, 1)
        )
    )
    alike = [spearmanr(seen[name], other[name]).statistic for name in seen if np.ptp(seen[name]) > 1]
    assert len(alike) > 5
    assert min(alike) > 0.9


def test_one_of_two_duplicates_is_free_and_the_other_then_is_not(tmp_path: Path) -> None:
    analysis = mlp(duplicate=True)
    found = greedy(group_of(analysis).atom, 8, stats_of(analysis, tmp_path))
    assert found is not None
    assert found.order[0] in (0, 1)
    assert found.losses[1] < 2 * DAMPING
    assert {0, 1} - {int(found.order[0])} != {int(found.order[1])}


def test_the_greedy_costs_add_up_to_the_error_of_one_refit(tmp_path: Path) -> None:
    analysis = mlp()
    stats = stats_of(analysis, tmp_path)
    found = greedy(group_of(analysis).atom, 8, stats)
    assert found is not None
    layer = next(stats.of(group_of(analysis).atom))
    weight, covariance = layer.consumer.matrices()[0], next(layer.blocks()).covariance.astype(np.float64)
    damped = covariance + DAMPING * np.trace(covariance) / 8 * np.eye(8)
    gone, kept = found.order[:5], np.sort(found.order[5:])
    schur = damped[np.ix_(gone, gone)] - damped[np.ix_(gone, kept)] @ np.linalg.solve(
        damped[np.ix_(kept, kept)], damped[np.ix_(kept, gone)]
    )
    wanted = np.sum((weight[:, gone] @ schur) * weight[:, gone]) / np.sum((weight @ covariance) * weight)
    assert found.losses[5] == pytest.approx(wanted, rel=1e-5)
    assert (np.diff(found.losses) >= 0).all()


def test_lamp_lies_in_0_1_keeps_the_order_of_magnitudes_and_ignores_scale(tmp_path: Path) -> None:
    lamp, magnitude = scores("lamp", mlp(), tmp_path), scores("l2", mlp(), tmp_path / "b")
    assert lamp.max() == pytest.approx(1.0)
    assert lamp.min() > 0
    np.testing.assert_array_equal(np.argsort(lamp), np.argsort(magnitude))


def test_a_batch_norms_scale_decides() -> None:
    text = """g (float[n,3,4,4] x) => (float[n,2,4,4] y) {
      a = Conv(x, w1) c = BatchNormalization(a, s, b, m, v) h = Relu(c) y = Conv(h, w2) }"""
    ones = np.ones(5, np.float32)
    scale = np.array([3, -4, 0.1, 2, 1], np.float32)
    weights = {
        "w1": normal(5, 3, 1, 1),
        "s": scale,
        "b": ones,
        "m": ones,
        "v": ones,
        "w2": normal(2, 5, 1, 1),
    }
    analysis = analysed(text, weights)
    found = CRITERIA["bn_scale"].score(group_of(analysis), Evidence(SlotWeights(analysis)))
    np.testing.assert_allclose(found, np.abs(scale))


def test_the_slot_nearest_to_all_others_goes_first(tmp_path: Path) -> None:
    analysis = mlp()
    for name, shape, axis in (("w1", (6, 8), 1), ("b1", (8,), 0), ("w2", (8, 3), 0)):
        array = np.moveaxis(normal(*shape, seed=len(name)), axis, 0)
        array[6] = array.mean(axis=0)
        set_weight(analysis, name, np.ascontiguousarray(np.moveaxis(array, 0, axis)))
    assert scores("fpgm", analysis, tmp_path).argmin() == 6


def test_nan_in_weights_gives_no_nan_score(tmp_path: Path) -> None:
    analysis = mlp()
    weight = normal(8, 3, seed=3)
    weight[2, 1] = np.nan
    set_weight(analysis, "w2", weight)
    for name in ("l1", "l2", "fpgm"):
        evidence = Evidence(SlotWeights(analysis))
        assert not np.isnan(CRITERIA[name].score(group_of(analysis), evidence)).any()


def test_auto_is_the_best_there_is_data_for() -> None:
    assert criterion_named("auto", has_data=True) is CRITERIA["obs"]
    assert criterion_named("auto") is CRITERIA["lamp"]


def test_a_covariance_of_rounding_alone_leaves_the_weights_to_judge() -> None:
    """Behind a pooling over one sample nothing varies, and what is left of the sums is no covariance."""
    generator = np.random.default_rng(0)
    noise = generator.normal(scale=1e-7, size=(16, 16))
    weight = generator.normal(size=(8, 16))
    reader = obs_module._Reader(weight, noise + noise.T + 1e-9 * np.eye(16), np.arange(16))
    costs = reader.costs(16)
    assert np.array_equal(np.argsort(costs), np.argsort(np.square(weight).sum(axis=0)))
    dropped = [reader.drop(np.array([slot])) for slot in np.argsort(costs)]
    assert np.isfinite(dropped).all()
    assert sum(dropped) == pytest.approx(1.0)
