"""Criteria by gradients and relative weights, and the PQ index: the identities of their papers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import sparsecc
from sparsecc.allocators.pq import least_kept, pq_index
from sparsecc.calibrate.layer_statistics import collect
from sparsecc.criteria import CRITERIA
from sparsecc.criteria.evidence import Evidence
from sparsecc.criteria.gradient import NAMES, Gradients
from sparsecc.criteria.weights import SlotWeights
from sparsecc.data.samples import Samples
from sparsecc.errors import InputError
from sparsecc.graph.analysis import Analysis
from sparsecc.graph.groups import find_groups
from tests.repair_models import analysed, mlp, normal

BATCH = Samples(({"x": normal(64, 6, seed=9)},), True)


def evidence(analysis: Analysis, folder: Path, samples: Samples = BATCH) -> Evidence:
    stats = collect(analysis, samples, folder)
    return Evidence(SlotWeights(analysis), stats, Gradients(analysis, samples, 0).of)


def scores(name: str, analysis: Analysis, folder: Path, samples: Samples = BATCH) -> np.ndarray:
    group = next(g for g in find_groups(analysis) if g.is_free)
    return CRITERIA[name].score(group, evidence(analysis, folder, samples))


def changed(name: str, array: np.ndarray) -> Analysis:
    analysis = mlp()
    analysis.model.graph.initializers[name].const_value = ir.Tensor(array, name=name)
    return analysis


# Relative weights ------------------------------------------------------------------------------------


def test_beta_rank_leaves_the_scale_of_the_inputs_aside_and_a_constant_filter_last(tmp_path: Path) -> None:
    array = normal(6, 8, seed=1)
    array[:, 3] = 0
    found = scores("beta_rank", changed("w1", array), tmp_path / "a")
    scaled = Samples(({"x": 7 * BATCH.batches[0]["x"]},), True)
    np.testing.assert_allclose(
        scores("beta_rank", changed("w1", array), tmp_path / "b", scaled), found, rtol=1e-4
    )
    assert found.argmin() == 3
    assert found[3] == 0


def test_beta_rank_is_its_formula(tmp_path: Path) -> None:
    weight, data = normal(6, 8, seed=1), BATCH.batches[0]["x"]
    beta = np.abs(weight).mean(axis=0) * (data @ weight).std(axis=0) / np.sqrt(data.var(axis=0).mean())
    wanted = (beta - beta.min()) / np.ptp(beta)
    np.testing.assert_allclose(scores("beta_rank", mlp(), tmp_path), wanted, rtol=1e-3, atol=1e-4)


def test_cfsp_weighs_every_slot_by_its_share_of_the_weights(tmp_path: Path) -> None:
    hidden = np.maximum(BATCH.batches[0]["x"] @ normal(6, 8, seed=1) + normal(8, seed=2), 0)
    sizes = np.abs(normal(8, 3, seed=3))
    wanted = (sizes / sizes.sum(axis=0)).sum(axis=1) * np.sqrt(np.square(hidden).mean(axis=0))
    found = scores("cfsp", mlp(), tmp_path)
    np.testing.assert_allclose(found / found.mean(), wanted / wanted.mean(), rtol=1e-3)


# The PQ index ----------------------------------------------------------------------------------------


def test_the_pq_index_has_its_papers_properties() -> None:
    values = np.abs(normal(50, seed=4))
    assert pq_index(np.full(9, 3.0)) == pytest.approx(0)
    assert pq_index(values * 7) == pytest.approx(pq_index(values))
    assert pq_index(np.tile(values, 3)) == pytest.approx(pq_index(values))
    assert pq_index(np.eye(1, 16)[0]) == pytest.approx(1 - 16 ** (1 - 1 / 0.5))
    assert least_kept(np.full(9, 3.0)) == pytest.approx(1)
    assert 1 / 16 - 1e-9 <= least_kept(np.eye(1, 16)[0]) <= 1
    assert pq_index(np.zeros(4)) == 0


# Gradients -------------------------------------------------------------------------------------------

torch = pytest.importorskip("torch", reason="gradient criteria need the extra: pip install 'sparsecc[torch]'")


@pytest.mark.parametrize("name", NAMES)
def test_a_gradient_criterion_scores_every_slot_and_the_same_again(name: str, tmp_path: Path) -> None:
    first = scores(name, mlp(), tmp_path / "a")
    assert first.shape == (8,)
    assert np.isfinite(first).all()
    assert np.ptp(first) > 0
    np.testing.assert_array_equal(first, scores(name, mlp(), tmp_path / "b"))


@pytest.mark.parametrize("name", ["taylor", "fisher", "snip", "nirvana", "lrp", "lrp_alpha", "lrp_epsilon"])
def test_a_slot_that_nobody_hears_scores_nothing(name: str, tmp_path: Path) -> None:
    array = normal(8, 3, seed=3)
    array[6] = 0
    found = scores(name, changed("w2", array), tmp_path)
    assert found.argmin() == 6
    assert found[6] == pytest.approx(0, abs=1e-12)


def test_of_a_linear_output_the_score_is_the_exact_change(tmp_path: Path) -> None:
    """NIRVANA's identity: with one weight per way, |w dy/dw| summed over both weights is twice the change."""
    text = "g (float[n, 6] x) => (float[n, 1] y) { h = MatMul(x, w1) y = MatMul(h, w2) }"
    w1, w2 = np.eye(6, dtype=np.float32)[:, :4].copy(), np.ones((4, 1), np.float32)
    data = np.abs(normal(1, 6, seed=5))
    found = scores("nirvana", analysed(text, {"w1": w1, "w2": w2}), tmp_path, Samples(({"x": data},), True))
    np.testing.assert_allclose(found, 2 * data[0, :4], rtol=1e-5)


def test_operators_that_torch_cannot_run_are_named(tmp_path: Path) -> None:
    text = "g (float[n, 6] x) => (float[n, 4] y) { a = MatMul(x, w1) b = Det(c) h = Add(a, b) y = MatMul(h, w2) }"
    weights = {"w1": normal(6, 8), "w2": normal(8, 4), "c": normal(3, 3)}
    with pytest.raises(InputError, match="criterion taylor: operators without a torch function: Det"):
        scores("taylor", analysed(text, weights), tmp_path)


def test_a_compile_by_gradients(models_dir: Path, tmp_path: Path) -> None:
    made = sparsecc.compile(
        models_dir / "digits_resnet.onnx",
        output=tmp_path / "out",
        ratio=0.3,
        criterion="taylor",
        allocator="uniform",
        calib=f"{models_dir / 'digits.py'}:calibration",
        evaluate=f"{models_dir / 'digits.py'}:accuracy",
        measure=False,
    )
    assert made.report["accuracy"]["after"] > 0.97


def test_without_torch_it_says_what_to_install(root: Path) -> None:
    code = """
import sys
sys.modules["torch"] = None
from sparsecc.criteria.gradient import Gradients
from sparsecc.errors import UnavailableError
try:
    Gradients(None, None, 0).of("taylor")
except UnavailableError as e:
    print(e)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert "criterion taylor needs gradients: run pip install 'sparsecc[torch]', or use obs" in done.stdout
