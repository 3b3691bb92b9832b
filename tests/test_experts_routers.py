"""What calibration says of routers: the same in every exported form, and equal to what the definitions give."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from sparsecc.calibrate.fused_mixtures import fused_mixtures
from sparsecc.calibrate.layer_statistics import collect
from sparsecc.calibrate.mixtures import Seen
from sparsecc.calibrate.routers import Router, mixtures_of, supers, tcess
from sparsecc.criteria import CRITERIA
from sparsecc.data.samples import Samples
from sparsecc.graph.analysis import analyse
from tests.rule_checks import feeds_of, loaded, model_of, run
from tests.test_rules_experts import mixture

pytest.importorskip("torch", reason="the zoo is exported by torch: pip install 'sparsecc[torch]'")
from tests.mixture_models import NEVER, biased, scale_expert, studied
from tests.zoo.export import Exporter

FORMS: dict[str, str] = {
    "mixtral": "sums to one",
    "qwen3_moe": "sums to one",
    "gpt_oss": "sums to one",
    "qwen_moe": "share of all",
    "deepseek_v3": "other",
}
CASES = [(name, exporter) for name in FORMS for exporter in ("dynamo", "torchscript")]


@pytest.mark.parametrize(("name", "exporter"), CASES)
def test_routers_of_exported_mixtures_are_watched(name: str, exporter: Exporter, tmp_path: Path) -> None:
    uneven = {1: 2.0} if name != "deepseek_v3" else {}
    found = studied(biased(name, exporter, uneven), tmp_path)
    assert len(found.stats.routers) == (1 if name == "deepseek_v3" else 2)
    for router in found.stats.routers:
        assert router.times.sum() == 2 * router.tokens == np.diagonal(router.together).sum()
        assert (router.peaks > 1).all(), "gate weights are not outputs"
        assert np.array_equal(router.together.sum(axis=1), 2 * router.times)
        if FORMS[name] == "sums to one":
            assert router.gates.sum() == pytest.approx(router.tokens)
        elif FORMS[name] == "share of all":
            assert 0 < router.gates.sum() < router.tokens
        (inner,), (micro,) = router.mixture.inner, router.micro
        assert inner.axis.size == micro.sums.shape[1]
        assert (micro.largest <= micro.sums + 1e-9).all()


@pytest.mark.parametrize("name", ["mixtral", "gpt_oss"])
def test_exporters_agree(name: str, tmp_path: Path) -> None:
    a, b = (studied(biased(name, e), tmp_path / e).stats.routers for e in ("dynamo", "torchscript"))
    for one, other in zip(a, b, strict=True):
        for field in ("times", "gates", "scores", "peaks", "norms", "together"):
            np.testing.assert_allclose(getattr(one, field), getattr(other, field), rtol=1e-4)
        np.testing.assert_allclose(one.micro[0].sums, other.micro[0].sums, rtol=1e-3)


def test_counts_are_those_of_the_scores(tmp_path: Path) -> None:
    """Scores read from the model by another way give the same choice and gates."""
    proto = biased("qwen_moe", "dynamo", {2: 1.5})
    name = next(
        n.output[0] for n in proto.graph.node if n.op_type == "Add" and n.output[0] + "_add" == n.name
    )
    proto.graph.output.append(onnx.helper.make_tensor_value_info(name, 1, None))
    found = studied(proto, tmp_path)
    scores = np.concatenate([run(found.analysis.model, batch)[1] for batch in found.samples.batches])
    chosen = np.argsort(-scores, axis=1)[:, :2]
    router = found.stats.routers[0]
    assert np.array_equal(router.times, np.bincount(chosen.ravel(), minlength=6))
    powers = np.exp(scores.astype(np.float64))
    gates = np.take_along_axis(powers / powers.sum(axis=1, keepdims=True), chosen, axis=1)
    wanted = np.bincount(chosen.ravel(), weights=gates.ravel(), minlength=6)
    np.testing.assert_allclose(router.gates, wanted, rtol=1e-4)
    values = np.take_along_axis(scores, chosen, axis=1)
    np.testing.assert_allclose(
        router.scores, np.bincount(chosen.ravel(), weights=values.ravel(), minlength=6), rtol=1e-4, atol=1e-3
    )


def test_reap_is_the_mean_of_gate_times_norm_over_the_tokens_that_came(tmp_path: Path) -> None:
    """Three tokens, two choices each; the third expert gets one token, the fourth none."""
    found = studied(biased("gpt_oss", "dynamo"), tmp_path)
    router = Router.empty(found.stats.routers[0].mixture)
    chosen = np.array([[0, 1], [1, 0], [0, 2]])
    gates = np.array([[0.75, 0.25], [0.5, 0.5], [0.9, 0.1]], dtype=np.float32)
    outputs = np.array([[3, 4], [0, 2], [0, 8], [6, 8], [0, 1], [8, 6]], dtype=np.float32)
    scores = np.zeros((3, len(router.times)))
    inner = tuple(np.zeros((6, micro.sums.shape[1])) for micro in router.micro)
    router.add(Seen(scores, chosen, gates, outputs, inner))
    group = found.experts[0]
    found.stats.routers = (router,)
    values = CRITERIA["reap"].score(group, found.evidence)
    wanted = [(0.75 * 5 + 0.5 * 10 + 0.9 * 1) / 3, (0.25 * 2 + 0.5 * 8) / 2, 0.1 * 10]
    np.testing.assert_allclose(values, [*wanted, *[0] * (len(values) - 3)], rtol=1e-6)


def test_tcess_with_all_experts_and_no_threshold_is_the_mean_score() -> None:
    scores = np.random.default_rng(0).normal(0, 2, (50, 7))
    np.testing.assert_allclose(tcess(scores, 7, 0.0), scores.mean(axis=0))


def test_tcess_counts_what_is_chosen_with_enough_weight() -> None:
    scores = np.array([[3.0, 1.0, 0.0], [0.0, 2.0, 1.9]])
    np.testing.assert_allclose(tcess(scores, 1, 0.0), [1.5, 1.0, 0.0])
    np.testing.assert_allclose(tcess(scores, 2, 0.4), [1.5, 1.0, 0.95])


def test_routers_are_kept_with_the_statistics(tmp_path: Path) -> None:
    found = studied(biased("mixtral"), tmp_path)
    again = collect(found.analysis, found.samples, tmp_path)
    assert again.facts["source"] == "cache"
    assert again.facts["routers"] == found.stats.facts["routers"]
    for one, other in zip(found.stats.routers, again.routers, strict=True):
        arrays, same = one.arrays(), other.arrays()
        assert all(np.array_equal(arrays[name], same[name]) for name in arrays)


FUSED = (
    "(float[N, 8] x, float[8, 5] wr, float[5, {wide}, 8] w1, float[5, {wide}] w2, float[5, 8, 12] w3, "
    "float[5, 8] w4) => (float y) {{ r = MatMul(x, wr) "
    "y = com.microsoft.MoE<k = 2, normalize_routing_weights = {norm}, {kind}>(x, r, w1, w2, w3, w4) }}"
)
KINDS = {
    "relu": 'activation_type = "relu"',
    "silu": 'activation_type = "silu"',
    "gelu": 'activation_type = "gelu"',
    "identity": 'activation_type = "identity"',
    "swiglu": 'activation_type = "swiglu", swiglu_fusion = 1',
    "swiglu as gpt-oss": 'activation_type = "swiglu", swiglu_fusion = 1, activation_alpha = 1.702, '
    "activation_beta = 1.0, swiglu_limit = 0.9",
}


@pytest.mark.parametrize("norm", [0, 1])
@pytest.mark.parametrize("kind", KINDS)
def test_the_operator_is_computed_as_the_runtime_does(kind: str, norm: int) -> None:
    wide = 24 if kind.startswith("swiglu") else 12
    proto = model_of(FUSED.format(wide=wide, norm=norm, kind=KINDS[kind]))
    model, feeds = loaded(proto), feeds_of(proto)
    (mixture,) = fused_mixtures(analyse(model))
    values = {"x": feeds["x"], "r": feeds["x"] @ model.graph.initializers["wr"].const_value.numpy()}  # type: ignore[union-attr]
    seen = mixture.read(values.__getitem__)
    assert seen.outputs is not None
    mixed = (seen.outputs.reshape(-1, 2, 8) * seen.gates[..., None]).sum(axis=1)
    np.testing.assert_allclose(mixed, run(model, feeds)[0], atol=2e-6)


PACKED = (
    "(float[N, 32] x, float[32, 5] wr, uint8[5, {wide}, {bytes}] w1, float[5, {wide}{blocks}] s1, "
    "float[5, {wide}] w2, uint8[5, 32, {bytes}] w3, float[5, 32{blocks}] s3, float[5, 32] w4{more}) => (float y) "
    "{{ r = MatMul(x, wr) "
    "y = com.microsoft.QMoE<k = 2, normalize_routing_weights = 1, expert_weight_bits = {bits}, {kind}>"
    "(x, r, w1, s1, w2, w3, s3, w4{uses}) }}"
)


@pytest.mark.parametrize(
    ("kind", "bits", "block", "zeros"),
    [
        ("silu", 4, 16, ""),
        ("swiglu as gpt-oss", 4, 16, ""),
        ("silu", 4, 16, "1"),
        ("relu", 4, 0, ""),
        ("silu", 8, 0, ""),
        ("silu", 2, 16, ""),
    ],
)
def test_packed_experts_are_computed_as_the_runtime_does(
    kind: str, bits: int, block: int, zeros: str
) -> None:
    wide, how = (
        (64 if kind.startswith("swiglu") else 32),
        KINDS[kind] + (f", block_size = {block}" if block else ""),
    )
    more, uses = f", uint8[5, {wide}, 1] z1, uint8[5, 32, 1] z3", ", , , , z1, z3"
    text = PACKED.format(
        wide=wide, bytes=4 * bits, bits=bits, kind=how, blocks=", 2" if block else "",
        more=more if zeros else "", uses=uses if zeros else "",
    )  # fmt: skip
    proto = model_of(text)
    model, feeds = loaded(proto), feeds_of(proto)
    (mixture,) = fused_mixtures(analyse(model))
    values = {"x": feeds["x"], "r": feeds["x"] @ model.graph.initializers["wr"].const_value.numpy()}  # type: ignore[union-attr]
    seen = mixture.read(values.__getitem__)
    assert seen.outputs is not None
    mixed = (seen.outputs.reshape(-1, 2, 32) * seen.gates[..., None]).sum(axis=1)
    wanted = run(model, feeds)[0]
    np.testing.assert_allclose(mixed, wanted, atol=2e-6 * float(np.abs(wanted).max()))


def test_routers_of_operators_are_watched(tmp_path: Path) -> None:
    model = loaded(model_of(FUSED.format(wide=12, norm=1, kind=KINDS["relu"])))
    rows = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)
    (router,) = studied(model, tmp_path, Samples(({"x": rows},), True)).stats.routers
    assert router.times.sum() == 80
    assert router.gates.sum() == pytest.approx(40)
    assert router.micro[0].sums.shape == (5, 12)
    assert (router.peaks > 0).all()


def test_operators_in_forms_that_the_cpu_does_not_run_are_left_out() -> None:
    text = FUSED.format(wide=24, norm=1, kind='activation_type = "swiglu", swiglu_fusion = 2')
    assert mixtures_of(analyse(loaded(model_of(text)))) == []


def test_sizes_of_gate_weights_are_no_gate_weights() -> None:
    """Experts' outputs in a shape that was taken from the gate weights have not met them yet."""
    text = mixture("s = Softmax(r) p, i = TopK(s, two) ")
    shaped = (
        "o1 = Squeeze(d, last) sp = Shape(p) wide = Constant<value_ints = [8]>() "
        "so = Concat<axis = 0>(sp, wide) o = Reshape(o1, so) "
    )
    (found,) = mixtures_of(analyse(loaded(model_of(text.replace("o = Squeeze(d, last) ", shaped)))))
    assert (found.node.op_type, found.outputs) == ("Mul", "o")


def test_a_planted_super_expert_is_found_and_no_other(tmp_path: Path) -> None:
    plain = studied(biased("mixtral"), tmp_path / "plain")
    assert not np.concatenate(supers(plain.stats.routers)).any()
    scale_expert(plain.stats.routers[0], 2, 50.0)
    planted = studied(plain.analysis.model, tmp_path / "planted", plain.samples)
    first, second = supers(planted.stats.routers)
    assert np.flatnonzero(first).tolist() == [2]
    assert not second.any()
    assert [row["super"] for row in planted.stats.facts["routers"]] == [[2], []]


def test_activations_count_by_their_gate_weight() -> None:
    (mixture,) = fused_mixtures(analyse(loaded(model_of(FUSED.format(wide=12, norm=0, kind=KINDS["relu"])))))
    router, rows = Router.empty(mixture), np.full((2, 12), 3.0, dtype=np.float32)
    gates = np.array([[0.5, 0.25]])
    router.add(Seen(np.arange(5.0)[None], np.array([[4, 3]]), gates, np.ones((2, 8)), (rows,)))
    np.testing.assert_allclose(router.micro[0].sums[[3, 4], 0], [0.75**2, 1.5**2])
    assert router.gates.tolist() == [0, 0, 0, 0.25, 0.5]


def test_late_layers_have_no_super_experts() -> None:
    (mixture,) = fused_mixtures(analyse(loaded(model_of(FUSED.format(wide=12, norm=0, kind=KINDS["relu"])))))
    routers = []
    for layer in range(4):
        ones, peaks = np.ones(8), np.ones(8)
        peaks[3] = 100.0 if layer in (0, 3) else 1.0
        routers.append(Router(mixture, 1, ones, ones, ones, peaks, ones, np.ones((8, 8)), []))
    assert [np.flatnonzero(mask).tolist() for mask in supers(routers)] == [[3], [], [], []]


def test_unused_experts_are_reported(tmp_path: Path) -> None:
    found = studied(biased("gpt_oss", bias={4: NEVER}), tmp_path)
    assert [row["unused"] for row in found.stats.facts["routers"]] == [[4], [4]]
