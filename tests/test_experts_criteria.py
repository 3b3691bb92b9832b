"""Scores of experts: what each method must give on exported mixtures whose routers are uneven, and what goes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from sparsecc import compile
from sparsecc.calibrate.routers import Micro
from sparsecc.criteria import CRITERIA
from sparsecc.criteria.clusters import merged
from sparsecc.criteria.evidence import Evidence
from sparsecc.criteria.experts import micro_scores
from sparsecc.criteria.weights import SlotWeights
from sparsecc.data.samples import Samples
from sparsecc.decide.channels import scored
from sparsecc.graph.groups import find_groups
from sparsecc.options import CompileOptions
from tests.repair_models import mlp, normal
from tests.rule_checks import loaded, model_of
from tests.test_rules_experts import mixture

pytest.importorskip("torch", reason="the zoo is exported by torch: pip install 'sparsecc[torch]'")
from tests.mixture_models import NEVER, Studied, atom_of, biased, scale_expert, stack_of, studied
from tests.zoo.export import Exporter

NAMES = ("expert_frequency", "expert_gate", "reap", "tcess", "camera", "stun")
ROUNDING = {"mixtral": 5e-6, "qwen_moe": 5e-6, "gpt_oss": 0.0}
"""A softmax over all experts sums in another order without one; outputs are of size 1 to 3."""
BY_USE = ("expert_frequency", "expert_gate", "reap", "camera")


def score(name: str, found: Studied, layer: int = 0) -> np.ndarray:
    return CRITERIA[name].score(found.experts[layer], found.evidence)


@pytest.mark.parametrize(
    ("name", "exporter"),
    [("mixtral", "dynamo"), ("mixtral", "torchscript"), ("qwen_moe", "dynamo"), ("gpt_oss", "dynamo")],
)
def test_an_expert_never_chosen_goes_first_and_nothing_changes(
    name: str, exporter: Exporter, tmp_path: Path
) -> None:
    found = studied(biased(name, exporter, {3: NEVER, 0: 1.0, 5: -1.0}), tmp_path)
    for layer in range(2):
        for criterion in BY_USE:
            scores = score(criterion, found, layer)
            assert np.flatnonzero(scores <= 0).tolist() == [3], criterion
    dense = found.outputs()
    for a, b in zip(dense, found.without({group.atom: 3 for group in found.experts}), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=ROUNDING[name])


def test_removing_a_used_expert_changes_outputs(tmp_path: Path) -> None:
    found = studied(biased("mixtral", bias={3: NEVER}), tmp_path)
    dense = found.outputs()
    changed = found.without({found.experts[0].atom: 2})
    assert max(np.abs(a - b).max() for a, b in zip(dense, changed, strict=True)) > 1e-3


@pytest.mark.parametrize("name", ["expert_frequency", "expert_gate", "tcess"])
def test_what_the_router_prefers_scores_more(name: str, tmp_path: Path) -> None:
    found = studied(biased("gpt_oss", bias={1: 3.0, 4: -1.5}), tmp_path)
    scores = score(name, found)
    assert np.argmax(scores) == 1
    assert np.argsort(scores)[0] == 4


@pytest.mark.parametrize("criterion", ["expert_gate", "auto"])
def test_one_command_removes_unused_experts(criterion: str, tmp_path: Path) -> None:
    path, samples = tmp_path / "mixture.onnx", tmp_path / "samples.npz"
    onnx.save(biased("mixtral", bias={3: NEVER}), path)
    ids = np.random.default_rng(0).integers(0, 50, (8, 11))
    np.savez(samples, input_ids=ids, attention_mask=np.ones_like(ids))
    report = compile(
        path,
        output=tmp_path / "out",
        ratio=0.05,
        metric="params",
        prune=("experts",),
        criterion=criterion,
        recover="none",
        calib=str(samples),
        measure=False,
    ).report
    (told,) = (p["facts"]["routers"] for p in report["passes"] if p["name"] == "calibrate")
    assert [row["unused"] for row in told] == [[3], [3]]
    experts = [g for g in report["groups"] if g["kind"] == "expert"]
    assert min(g["kept"] for g in experts) == 5
    assert report["fidelity"]["quality_db"] > 110


def test_experts_are_scored_by_their_gates_where_auto_takes_another_criterion_for_the_rest(
    tmp_path: Path,
) -> None:
    found = studied(biased("gpt_oss", bias={1: 3.0, 4: -1.5}), tmp_path)
    options = CompileOptions(calib="samples")
    (candidate,) = scored(found.analysis, found.experts[:1], options, found.evidence, "fluctuation")
    assert np.array_equal(candidate.scores, score("expert_gate", found))
    options = CompileOptions(calib="samples", criterion="l2")
    (candidate,) = scored(found.analysis, found.experts[:1], options, found.evidence)
    assert np.array_equal(candidate.scores, score("l2", found))


def test_other_groups_are_scored_as_auto_does(tmp_path: Path) -> None:
    found = studied(mlp().model, tmp_path, Samples(({"x": normal(200, 6, seed=9)},), True))
    group = next(g for g in find_groups(found.analysis) if g.is_free)
    wanted = CRITERIA["obs"].score(group, found.evidence)
    for name in NAMES:
        assert np.array_equal(CRITERIA[name].score(group, found.evidence), wanted), name


@pytest.mark.parametrize("name", NAMES)
def test_a_planted_super_expert_is_kept(name: str, tmp_path: Path) -> None:
    """Rare, alike to another, and of an output a hundred times that of the others."""
    plain = studied(biased("mixtral", bias={2: -3.0}), tmp_path / "plain")
    scale_expert(plain.stats.routers[0], 2, 100.0)
    found = studied(plain.analysis.model, tmp_path / "planted", plain.samples)
    assert 0 < found.stats.routers[0].times[2] == found.stats.routers[0].times.min()
    options = CompileOptions(criterion=name, calib="random.npz")
    first = scored(found.analysis, found.experts[:1], options, found.evidence)[0]
    assert first.best(first.floor)[2]
    if name in ("expert_frequency", "expert_gate"):
        assert np.argmin(score(name, found)) == 2


def test_the_floor_holds_all_super_experts(tmp_path: Path) -> None:
    plain = studied(biased("mixtral", bias=dict.fromkeys((1, 2, 3), -1.0)), tmp_path / "plain")
    for expert in (1, 2, 3):
        scale_expert(plain.stats.routers[0], expert, 100.0)
    stats = studied(plain.analysis.model, tmp_path / "planted", plain.samples)
    for router in stats.stats.routers[:1]:
        router.peaks[[1, 2, 3]] = router.peaks.max()
    candidates = scored(
        stats.analysis, stats.experts, CompileOptions(criterion="expert_gate"), stats.evidence
    )
    assert [c.floor for c in candidates] == [3, 2]
    assert candidates[0].best(3)[[1, 2, 3]].all()


def test_slots_of_an_expert_never_chosen_score_nothing(tmp_path: Path) -> None:
    found = studied(biased("qwen_moe", bias={3: NEVER}), tmp_path)
    for router in found.stats.routers:
        scores = micro_scores(router.micro[0], router.mixture.inner[0].energy())
        assert (scores[3] == 0).all()
        assert (np.delete(scores, 3, axis=0) > 0).all()


def test_camera_scores_the_inner_width_of_experts(tmp_path: Path) -> None:
    """A slot whose column is zero in all experts scores zero; the shared expert's width falls back."""
    found = studied(biased("qwen_moe"), tmp_path)
    router = found.stats.routers[0]
    (inner,) = router.mixture.inner
    assert inner.weight.const_value is not None
    array = inner.weight.const_value.numpy().copy()
    np.moveaxis(array, inner.slot, 0)[7] = 0
    inner.weight.const_value = ir.Tensor(array, name=inner.weight.name)
    groups = {g.atom: g for g in find_groups(found.analysis)}
    scores = CRITERIA["camera"].score(groups[atom_of(inner.axis)], found.evidence)
    assert scores[7] == 0
    assert (np.delete(scores, 7) > 0).all()
    total = micro_scores(router.micro[0], inner.energy())
    np.testing.assert_allclose(scores, total.sum(axis=0))
    np.testing.assert_allclose(score("camera", found), total.sum(axis=1))


CERTAIN = "c, i = TopK(r, two) p = Softmax(c) "
"""One expert for each token, with gate weight 1."""


def certain(bias: np.ndarray | None = None, twin: tuple[int, int] | None = None) -> onnx.ModelProto:
    """Five experts of which one is chosen for each token. `twin` makes two of them the same, routers and all."""
    text = mixture(CERTAIN).replace("two = {2}", "two = {1}")
    if bias is not None:
        text = text.replace("r = MatMul(h, w1) ", "q0 = MatMul(h, w1) r = Add(q0, w5) ")
        text = text.replace("float[8, 3] w9", "float[5] w5, float[8, 3] w9")
    proto = model_of(text, values={} if bias is None else {"w5": bias.astype(np.float32)})
    for tensor in proto.graph.initializer if twin else ():
        array = onnx.numpy_helper.to_array(tensor).copy()
        experts = np.moveaxis(array, 1 if tensor.name == "w1" else 0, 0)
        if tensor.name in ("w1", "w2", "w3", "w4"):
            experts[twin[1]] = experts[twin[0]]  # type: ignore[index]
        tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    return proto


def rows(number: int = 60) -> Samples:
    return Samples(({"x": normal(number, 6, seed=5)},), True)


def test_one_expert_with_gate_one_is_a_dense_layer(tmp_path: Path) -> None:
    """Without the maximum, CAMERA's score is Σ a_i² ‖w_i‖² of an ordinary layer."""
    found = studied(loaded(certain(np.array([0, 99, 0, 0, 0]))), tmp_path, rows())
    (router,) = found.stats.routers
    model = found.analysis.model.graph.initializers
    arrays = {n: model[n].const_value.numpy().astype(np.float64) for n in ("w0", "w2", "w3", "w4")}  # type: ignore[union-attr]
    hidden = found.samples.batches[0]["x"] @ arrays["w0"]
    active = np.maximum(hidden @ arrays["w2"][1].T + arrays["w4"][1], 0)
    wanted = np.square(active).sum(axis=0) * np.square(arrays["w3"][1]).sum(axis=0)
    scores = micro_scores(router.micro[0], router.mixture.inner[0].energy(), 0.0)
    np.testing.assert_allclose(scores[1], wanted, rtol=1e-4)
    largest = np.square(active).max(axis=0) * np.square(arrays["w3"][1]).sum(axis=0)
    np.testing.assert_allclose(
        micro_scores(router.micro[0], router.mixture.inner[0].energy(), 1.0)[1], largest, rtol=1e-4
    )


def test_micro_scores_weigh_sum_and_largest() -> None:
    found = Micro(np.array([[10.0]]), np.array([[4.0]]))
    assert micro_scores(found, np.array([[2.0]])) == pytest.approx(2 * (0.1 * 10 + 0.9 * 4))


def test_of_two_equal_experts_one_goes_first_and_nothing_changes(tmp_path: Path) -> None:
    found = studied(loaded(certain(twin=(1, 4))), tmp_path, rows())
    scores = score("stun", found)
    gone = int(np.argmin(scores))
    assert gone == 4
    assert found.stats.routers[0].times[4] == 0 < found.stats.routers[0].times[1]
    assert scores[1] > np.sort(scores)[1]
    for a, b in zip(found.outputs(), found.without({found.experts[0].atom: gone}), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("name", ["mixtral", "gpt_oss"])
def test_equal_experts_of_exported_mixtures_are_merged_first(name: str, tmp_path: Path) -> None:
    plain = studied(biased(name), tmp_path / "plain")
    for value in plain.analysis.model.graph.initializers.values():
        group = plain.experts[0]
        for tensor, axis in group.members:
            if value.name == tensor and value.const_value is not None:
                array = value.const_value.numpy().copy()
                slots = np.moveaxis(array, axis, 0)
                slots[5] = slots[2]
                value.const_value = ir.Tensor(array, name=tensor)
    found = studied(plain.analysis.model, tmp_path / "twins", plain.samples)
    assert np.array_equal(
        stack_of(found.stats.routers[0].mixture)[2], stack_of(found.stats.routers[0].mixture)[5]
    )
    scores = score("stun", found)
    assert np.argmin(scores) in (2, 5)
    assert {2, 5} != set(np.argsort(scores)[:2].tolist())


def test_clusters_leave_one_each() -> None:
    """Two groups of three experts: whatever is kept of two comes from both."""
    places = np.array([0.0, 0.2, 0.25, 9.0, 9.05, 9.3])
    distance = np.abs(places[:, None] - places[None, :])
    scores = merged(distance, np.square(distance), np.ones(6))
    assert len(set(scores)) == 6
    order = np.argsort(-scores)
    assert {int(e) // 3 for e in order[:2]} == {0, 1}
    assert set(order[:2].tolist()) == {1, 3}, "of those left to stand for it, the nearest to its mean"
    assert scores.min() >= 0


def test_clusters_are_judged_by_their_least_similar_members() -> None:
    """A chain of neighbours is two pairs, not three and one."""
    places = np.array([0.0, 1.0, 2.1, 3.3])
    distance = np.abs(places[:, None] - places[None, :])
    order = np.argsort(-merged(distance, np.square(distance), np.ones(4)))
    assert set(order[:2].tolist()) == {0, 2}


def test_the_more_used_of_two_alike_stays() -> None:
    distance = np.array([[0.0, 0.1, 5], [0.1, 0, 5], [5, 5, 0]])
    assert np.argmin(merged(distance, distance, np.array([1.0, 9.0, 1.0]))) == 0
    assert np.argmin(merged(distance, distance, np.array([9.0, 1.0, 1.0]))) == 1


def test_stun_needs_no_router(tmp_path: Path) -> None:
    """Weights alone where no statistics are there."""
    found = studied(loaded(certain(twin=(0, 3))), tmp_path, rows())
    scores = CRITERIA["stun"].score(found.experts[0], Evidence(SlotWeights(found.analysis)))
    assert np.argmin(scores) in (0, 3)
