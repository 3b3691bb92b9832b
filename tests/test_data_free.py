"""Repair without samples: what batch norms remember, and biases that leave deep networks alive."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import sparsecc
from sparsecc.allocators import allocator_named
from sparsecc.axes.algebra import Atom
from sparsecc.calibrate.batch_norm_matching import matched, matched_pair, norm_of, norms_of
from sparsecc.cli.compile_view import compile_view
from sparsecc.cli.view import Line
from sparsecc.data.samples import Samples, image_like
from sparsecc.decide.data_free import PLANS, Method, first_of_the_least
from sparsecc.graph.analysis import Analysis
from sparsecc.graph.groups import find_groups
from sparsecc.graph.rewrite import remove
from sparsecc.loss.measure import Reference
from sparsecc.reconstruct.layerwise import repair
from sparsecc.reconstruct.stage import kept_values
from sparsecc.runtime.session import open_session
from tests.compilations import compilation
from tests.repair_models import analysed, normal

WIDTH, DEPTH = 16, 12
NOISE = Samples(({"x": normal(256, 8, seed=5)},), False)


def real_inputs() -> dict[str, np.ndarray]:
    """Nothing like N(0, 1)."""
    return {"x": 6 * normal(400, 8, seed=6) + 4}


def outputs(model: ir.Model, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return open_session(model, level="none").run(feeds)


def normed() -> Analysis:
    """8 -> 16 -> 16 -> 3 with batch norms whose statistics are those of `real_inputs`."""
    text = """g (float[n, 8] x) => (float[n, 3] y) {
        a = Gemm(x, w0)
        b = BatchNormalization(a, s0, o0, m0, v0)
        c = Relu(b)
        d = Gemm(c, w1)
        e = BatchNormalization(d, s1, o1, m1, v1)
        f = Relu(e)
        y = Gemm(f, w2)
    }"""
    weights = {"w0": normal(8, 16), "w1": normal(16, 16, seed=1), "w2": normal(16, 3, seed=2)}
    for i in (0, 1):
        weights |= {f"s{i}": 1 + 0.3 * normal(16, seed=10 + i), f"o{i}": 0.5 * normal(16, seed=20 + i)}
    data = real_inputs()["x"] @ weights["w0"]
    weights |= {"m0": data.mean(axis=0), "v0": data.var(axis=0)}
    scaled = (data - weights["m0"]) / np.sqrt(weights["v0"] + 1e-5) * weights["s0"] + weights["o0"]
    data = np.maximum(scaled, 0) @ weights["w1"]
    return analysed(text, weights | {"m1": data.mean(axis=0), "v1": data.var(axis=0)})


def cut(analysis: Analysis, share: int) -> tuple[ir.Model, dict[Atom, np.ndarray]]:
    """One slot in `share` of every free group goes; the dense model, and what stays."""
    keep = {g.atom: np.arange(g.size) % share != 0 for g in find_groups(analysis) if g.is_free}
    dense = analysis.model.clone()
    remove(analysis, keep)
    return dense, keep


def test_inside_batch_norms_hold_the_statistics_of_the_samples_and_then_their_own_again(
    tmp_path: Path,
) -> None:
    model = normed().model
    before = [norm_of(node) for node in norms_of(model)]
    wanted = norm_of(norms_of(normed().model)[0])
    with matched(model, NOISE, tmp_path, threads=1, memory=1 << 24):
        inside = norm_of(norms_of(model)[0])
        passed = outputs_at(model, "b", NOISE.batches[0])
    assert np.abs(inside.mean - wanted.mean).max() > 1
    scale, offset = 1 + 0.3 * normal(16, seed=10), 0.5 * normal(16, seed=20)
    np.testing.assert_allclose(passed.mean(axis=0), offset, atol=1e-3)
    np.testing.assert_allclose(passed.std(axis=0), np.abs(scale), rtol=1e-2)
    for node, norm in zip(norms_of(model), before, strict=True):
        np.testing.assert_array_equal(norm_of(node).mean, norm.mean)
        np.testing.assert_array_equal(norm_of(node).variance, norm.variance)


def outputs_at(model: ir.Model, name: str, feeds: dict[str, np.ndarray]) -> np.ndarray:
    from sparsecc.data.samples import Samples
    from sparsecc.runtime.segments import Walk

    walk = Walk(model, Samples((feeds,), True).batches, Path("/nonexistent"), wanted=[name])
    walk.reach(name)
    return walk.value(name, 0)


@pytest.mark.parametrize("method", ["bn", "reconstruct", "bias"])
def test_noise_matched_to_batch_norms_mends_what_plain_noise_does_not(method: str, tmp_path: Path) -> None:
    feeds, errors = real_inputs(), {}
    for way in ("none", "plain", "matched"):
        analysis = normed()
        dense, keep = cut(analysis, 4)
        kept = kept_values(analysis, keep)
        if way == "plain":
            repair(compilation(folder=tmp_path / way), dense, analysis.model, kept, NOISE, method)
        elif way == "matched":
            with (
                matched(dense, NOISE, tmp_path / way, threads=1, memory=1 << 24),
                matched_pair(dense, analysis.model, kept),
            ):
                repair(compilation(folder=tmp_path / way), dense, analysis.model, kept, NOISE, method)
        errors[way] = Reference([outputs(normed().model, feeds)]).loss([outputs(analysis.model, feeds)])
    assert errors["matched"] < (0.5 if method == "reconstruct" else 0.95) * errors["none"]
    assert errors["matched"] < 0.8 * errors["plain"]


def test_nothing_pruned_changes_nothing(tmp_path: Path) -> None:
    analysis = normed()
    before = {n: v.const_value.numpy() for n, v in analysis.model.graph.initializers.items() if v.const_value}
    dense = normed().model
    with (
        matched(dense, NOISE, tmp_path, threads=1, memory=1 << 24),
        matched_pair(dense, analysis.model, lambda name, axis: None),
    ):
        repair(compilation(folder=tmp_path), dense, analysis.model, lambda name, axis: None, NOISE, "bn")
    for name, value in analysis.model.graph.initializers.items():
        assert value.const_value is not None
        np.testing.assert_array_equal(value.const_value.numpy(), before[name])


def deep() -> Analysis:
    """A ReLU network of 12 layers."""
    lines, weights, last = [], {}, "x"
    for i in range(DEPTH):
        weights[f"w{i}"] = normal(8 if i == 0 else WIDTH, WIDTH, seed=i) / np.float32(2.5)
        weights[f"b{i}"] = 0.3 * normal(WIDTH, seed=100 + i) - np.float32(0.2)
        lines.append(f"a{i} = Gemm({last}, w{i}, b{i}) h{i} = Relu(a{i})")
        last = f"h{i}"
    weights["w"] = normal(WIDTH, 4, seed=50)
    text = f"g (float[n, 8] x) => (float[n, 4] y) {{ {' '.join(lines)} y = Gemm({last}, w) }}"
    return analysed(text, weights)


def test_biases_keep_the_signal_of_a_deep_network_alive(tmp_path: Path) -> None:
    feeds = {"x": normal(400, 8, seed=6)}
    strength = {}
    for method in ("none", "bias"):
        analysis = deep()
        dense, keep = cut(analysis, 2)
        if method == "bias":
            kept = kept_values(analysis, keep)
            repair(compilation(folder=tmp_path), dense, analysis.model, kept, Samples((feeds,), True), method)
        found = outputs(analysis.model, feeds)["y"]
        strength[method] = float((found.std(axis=0) / (np.abs(found.mean(axis=0)) + 1e-9)).mean())
    wanted = outputs(deep().model, feeds)["y"]
    dense_strength = float((wanted.std(axis=0) / (np.abs(wanted.mean(axis=0)) + 1e-9)).mean())
    assert strength["bias"] > 0.3 * dense_strength


def test_noise_for_images_has_more_in_low_frequencies() -> None:
    drawn = image_like(normal(4, 3, 32, 32))
    power = np.abs(np.fft.rfft2(drawn)) ** 2
    assert power[..., 1, 1].mean() > 50 * power[..., 15, 15].mean()
    np.testing.assert_allclose(drawn.std(axis=(2, 3)), 1, rtol=1e-3)
    assert drawn.dtype == np.float32
    last = image_like(normal(4, 32, 32, 3))
    np.testing.assert_allclose(last.std(axis=(1, 2)), 1, rtol=1e-3)
    other = normal(4, 16, 32, 32)
    assert image_like(other) is other


def test_a_compile_with_synthetic_inputs_says_what_it_matched(tmp_path: Path) -> None:
    ir.save(normed().model, tmp_path / "m.onnx")
    options: dict[str, Any] = {"ratio": 0.3, "calib": "synthetic", "align": 1, "measure": False}
    made = sparsecc.compile(tmp_path / "m.onnx", output=tmp_path / "out", **options)
    facts = next(p for p in made.report["passes"] if p["name"] == "repair" and "facts" in p)["facts"]
    assert (facts["method"], facts["data"]) == ("reconstruct", "random inputs matched to 2 batch norms")
    assert any("works on random inputs matched to 2 batch norms" in w for w in made.report["warnings"])
    assert {"w1", "w2"} <= set(made.plan["repaired"])


def test_without_samples_files_with_batch_norms_are_repaired_and_nothing_is_judged(tmp_path: Path) -> None:
    ir.save(normed().model, tmp_path / "m.onnx")
    made = sparsecc.compile(tmp_path / "m.onnx", ratio=0.3, align=1, measure=False, output=tmp_path / "out")
    facts = next(row["facts"] for row in made.report["passes"] if row["name"] == "repair" and "facts" in row)
    assert facts["data"] == "random inputs matched to 2 batch norms"
    assert made.report["verdict"]["judgement"] == "not judged"
    assert not [line for line in compile_view(made.report) if isinstance(line, Line) and line.style == "good"]


def moved(model: Path, bundle: Path) -> float:
    """How far a plan moves the outputs on noise with an image's frequencies, none that a compile draws."""
    noise = np.random.default_rng(77).standard_normal((64, 1, 16, 16)).astype(np.float32)
    dense, small = (
        open_session(path).run({"image": image_like(noise)}) for path in (model, bundle / "model.onnx")
    )
    return Reference([dense]).loss([small])


def test_without_samples_the_plan_that_moves_least_is_taken(models_dir: Path, tmp_path: Path) -> None:
    """The transformer of the digits: two plans of the same work differ by seven times."""
    model = models_dir / "digits_vit.onnx"
    options: dict[str, Any] = {"ratio": 0.3, "measure": False}
    made = sparsecc.compile(model, output=tmp_path / "auto", **options)
    (facts,) = (p["facts"] for p in made.report["passes"] if p["name"] == "choose" and "facts" in p)
    assert facts["tried"] == "random inputs"
    for criterion, allocator in PLANS:
        folder = tmp_path / f"{criterion}_{allocator}"
        other = sparsecc.compile(model, output=folder, criterion=criterion, allocator=allocator, **options)
        is_taken = (facts["criterion"], facts["allocator"]) == (criterion, allocator)
        assert not is_taken or other.plan["tensors"] == made.plan["tensors"]
        assert moved(model, tmp_path / "auto") <= 1.2 * moved(model, folder)


@pytest.mark.parametrize(
    ("losses", "misses", "taken"),
    [
        ((0.65, 0.65, 0.65, 0.62, 0.62), (), 0),
        ((13.0, 7.2, 12.7, 5.4, 4.7), (), 3),
        ((2.0, 0.2, 2.4, 0.8, 0.8), (), 1),
        ((0.1, 0.2, 0.4, 0.8, 0.8), (0,), 1),
        ((0.1, 0.2, 0.4, 0.8, 0.8), range(5), 0),
        ((np.inf,) * 5, (), 0),
    ],
)
def test_of_losses_that_chance_may_have_parted_the_first_plan_is_taken(
    losses: tuple[float, ...], misses: tuple[int, ...], taken: int
) -> None:
    methods = [Method(criterion, allocator_named(allocator), []) for criterion, allocator in PLANS]
    found = [
        (i in misses, loss, method) for i, (loss, method) in enumerate(zip(losses, methods, strict=True))
    ]
    assert first_of_the_least(found) is methods[taken]


def test_recurrent_models_that_read_words_are_cut_by_the_same_share(tmp_path: Path) -> None:
    text = """g (int64[5, 2] x) => (float[2, 3] y) {
        a = Gather<axis=0>(table, x) b, h = LSTM<hidden_size=16>(a, w, r) s = Squeeze(h, zero) y = Gemm(s, w2) }"""
    weights = {
        "table": normal(9, 8),
        "w": normal(1, 64, 8, seed=1),
        "r": normal(1, 64, 16, seed=2),
        "zero": np.array([0]),
        "w2": normal(16, 3, seed=3),
    }
    ir.save(analysed(text, weights).model, tmp_path / "words.onnx")
    made = sparsecc.compile(tmp_path / "words.onnx", ratio=0.3, dry_run=True)
    (facts,) = (p["facts"] for p in made.report["passes"] if p["name"] == "choose" and "facts" in p)
    assert (facts["criterion"], facts["allocator"]) == ("l2", "uniform")
    assert "tried" not in facts


def test_nothing_is_tried_on_random_integers_or_where_a_method_was_asked_for(
    models_dir: Path, tmp_path: Path
) -> None:
    text = """g (int64[n, 4] x) => (float[n, 3] y) {
        a = Gather<axis=0>(table, x) b = ReduceMean<keepdims=0>(a, one)
        c = Gemm(b, w1) d = Relu(c) y = Gemm(d, w2) }"""
    weights = {
        "table": normal(9, 8),
        "one": np.array([1]),
        "w1": normal(8, 16, seed=1),
        "w2": normal(16, 3, seed=2),
    }
    ir.save(analysed(text, weights).model, tmp_path / "words.onnx")
    for model, asked in ((tmp_path / "words.onnx", "auto"), (models_dir / "digits_lstm.onnx", "l1")):
        made = sparsecc.compile(model, ratio=0.3, dry_run=True, criterion=asked)
        (facts,) = (p["facts"] for p in made.report["passes"] if p["name"] == "choose" and "facts" in p)
        assert (facts["criterion"], facts["allocator"]) == ("lamp" if asked == "auto" else asked, "global")
        assert "tried" not in facts
