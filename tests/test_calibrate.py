"""Calibration: rows of layers, walks over values, samples, statistics."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from sparsecc.calibrate.layer_statistics import collect
from sparsecc.data import samples as sampling
from sparsecc.data.samples import CalibrationSet, Samples, merged, random_samples
from sparsecc.errors import InputError
from sparsecc.graph.analysis import analyse
from sparsecc.graph.linear_layers import LinearLayer, own_layer_of
from sparsecc.runtime.segments import Walk
from sparsecc.runtime.session import open_session
from tests.repair_models import MLP, analysed, mlp, model_of, normal

CONVS = [
    ("group=1", (4, 3, 3, 3)),
    ("pads=[1,1,1,1], strides=[2,2]", (4, 3, 3, 3)),
    ("pads=[0,1,2,1], dilations=[2,1]", (4, 3, 3, 2)),
    ('auto_pad="SAME_UPPER", strides=[2,2]', (4, 3, 2, 3)),
    ('auto_pad="SAME_LOWER", strides=[2,3]', (4, 3, 4, 3)),
    ("group=3, pads=[1,1,1,1]", (6, 1, 3, 3)),
]


def outputs(model: ir.Model, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return open_session(model, level="none").run(feeds)


def layer_of(model: ir.Model) -> LinearLayer:
    found = own_layer_of(next(iter(model.graph)))
    assert isinstance(found, LinearLayer)
    return found


def assert_rows_give_outputs(model: ir.Model, data: np.ndarray) -> None:
    layer = layer_of(model)
    wanted = outputs(model, {"x": data})["y"]
    picks = np.arange(int(np.prod(layer.places(data))))[::2]
    made = np.matmul(layer.rows(data, picks), layer.matrices().transpose(0, 2, 1))
    flat = made.transpose(1, 0, 2).reshape(len(picks), -1)
    np.testing.assert_allclose(flat, layer.outputs(wanted, picks), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("attributes", "shape"), CONVS)
def test_rows_of_a_convolution_are_what_its_matrix_multiplies(
    attributes: str, shape: tuple[int, ...]
) -> None:
    sizes = ",".join("n" if i == 0 else f"d{i}" for i in range(4))
    text = f"g (float[n,3,9,8] x) => (float[{sizes}] y) {{ y = Conv<{attributes}>(x, w) }}"
    assert_rows_give_outputs(model_of(text, {"w": normal(*shape)}), normal(2, 3, 9, 8, seed=5))


@pytest.mark.parametrize(
    ("node", "shape"),
    [("Gemm(x, w)", (6, 4)), ("Gemm<transB=1>(x, w)", (4, 6)), ("MatMul(x, w)", (6, 4))],
)
def test_rows_of_a_product(node: str, shape: tuple[int, int]) -> None:
    model = model_of(f"g (float[n,6] x) => (float[n,4] y) {{ y = {node} }}", {"w": normal(*shape)})
    assert_rows_give_outputs(model, normal(5, 6, seed=5))


def test_a_stored_matrix_reads_back() -> None:
    model = model_of("g (float[n,6] x) => (float[n,4] y) { y = MatMul(x, w) }", {"w": normal(6, 4)})
    layer = layer_of(model)
    layer.store(layer.matrices() * 2)
    np.testing.assert_allclose(layer.weight.const_value.numpy(), normal(6, 4) * 2)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("node", "reason"),
    [
        ("Gemm<alpha=2.0>(x, w)", "alpha"),
        ("Gemm(x, w) z = Gemm(x, w)", "shared by 2"),
    ],
)
def test_what_is_no_layer_of_its_own_says_why(node: str, reason: str) -> None:
    model = model_of(f"g (float[n,6] x) => (float[n,4] y) {{ y = {node} }}", {"w": normal(6, 4)})
    found = own_layer_of(next(iter(model.graph)))
    assert isinstance(found, str)
    assert reason in found


@pytest.mark.parametrize("memory", [0, 1 << 30])
def test_a_walk_computes_what_a_run_does(memory: int, tmp_path: Path) -> None:
    analysis = mlp()
    batches = [{"x": normal(4, 6, seed=i)} for i in range(3)]
    walk = Walk(analysis.model, batches, tmp_path, wanted=["y"], memory=memory)
    walk.reach("h")
    assert walk.has("h")
    assert not walk.has("a")
    walk.reach("y")
    for number, feeds in enumerate(batches):
        np.testing.assert_allclose(walk.value("y", number), outputs(analysis.model, feeds)["y"], rtol=1e-5)
    walk.release("y")
    assert not walk.has("y")
    assert not list(tmp_path.rglob("*.npy"))


def test_a_walk_sees_weights_changed_on_the_way(tmp_path: Path) -> None:
    analysis = mlp()
    feeds = {"x": normal(4, 6)}
    walk = Walk(analysis.model, [feeds], tmp_path, wanted=["y"])
    walk.reach("h")
    bias = analysis.model.graph.initializers["b2"]
    bias.const_value = ir.Tensor(normal(3, seed=4) + 1, name="b2")
    walk.reach("y")
    np.testing.assert_allclose(walk.value("y", 0), outputs(analysis.model, feeds)["y"], rtol=1e-5)


def test_a_segment_too_large_for_one_message_goes_through_a_file_that_goes_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sparsecc.runtime.session._INLINE", 0)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    text = """g (float[n,6] x) => (float[n,3] y) {
      a = MatMul(x, w1) h = Relu(a) b = MatMul(h, w2) y = MatMul(b, w3) }"""
    weights = {"w1": normal(6, 300), "w2": normal(300, 90, seed=1), "w3": normal(90, 3, seed=2)}
    analysis, feeds = analysed(text, weights), {"x": normal(4, 6)}
    walk = Walk(analysis.model, [feeds], tmp_path / "not" / "yet", wanted=["y"])
    for name in ("h", "b", "y"):
        walk.reach(name)
    np.testing.assert_allclose(walk.value("y", 0), outputs(analysis.model, feeds)["y"], rtol=1e-4)
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == []


def test_small_batches_are_joined_where_the_model_allows() -> None:
    free = mlp().model
    assert [b["x"].shape[0] for b in merged([{"x": normal(1, 6)}] * 70, free)] == [64, 6]
    fixed = model_of(MLP.replace("[n,", "[1,"), {})
    assert len(merged([{"x": normal(1, 6)}] * 3, fixed)) == 3


def test_large_samples_make_small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "TOGETHER", 3 * 6 * 4)
    found = merged([{"x": normal(1, 6, seed=i)} for i in range(7)] + [{"x": normal(9, 6)}], mlp().model)
    assert [b["x"].shape[0] for b in found] == [3, 3, 10]  # one that is large already stays whole
    np.testing.assert_array_equal(found[1]["x"][0], normal(1, 6, seed=3)[0])


def test_samples_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "LIMIT", 10)
    batches = tuple(merged([{"x": normal(4, 6)}] * 9, mlp().model))
    assert Samples(batches, True).number == 12
    assert Samples(batches, True).first(1).number == 12


def test_without_a_folder_inputs_are_random_and_say_so() -> None:
    model = mlp().model
    found = random_samples(model, sizes={"x": (2, 6)}, seed=0)
    again = random_samples(model, sizes={"x": (2, 6)}, seed=0)
    assert not found.real
    assert found.number == sampling.DRAWN
    np.testing.assert_array_equal(found.batches[0]["x"], again.batches[0]["x"])


def test_nan_in_samples_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.full((2, 6), np.nan, np.float32))
    with pytest.raises(InputError, match="NaN"):
        _ = CalibrationSet(str(tmp_path), mlp().model).samples


def test_statistics_are_those_of_the_layer_inputs(tmp_path: Path) -> None:
    model = model_of(
        """g (float[n,3,8,8] x) => (float[n,4,8,8] y) {
          a = Conv<pads=[1,1,1,1]>(x, w) h = Relu(a) y = Conv(h, v) }""",
        {"w": normal(5, 3, 3, 3), "v": normal(4, 5, 1, 1)},
    )
    analysis = analyse(model, {"x": (2, 3, 8, 8)})
    data = normal(6, 3, 8, 8)
    stats = collect(analysis, Samples(({"x": data},), True), tmp_path)
    model.graph.outputs.append(next(v for n in model.graph for v in n.outputs if v.name == "h"))
    h = outputs(model, {"x": data})["h"].transpose(1, 0, 2, 3).reshape(5, -1)
    layer = next(found for found in stats.layers.values() if found.mean.shape[1] == 5)
    np.testing.assert_allclose(layer.mean[0], h.mean(axis=1), rtol=1e-4)
    np.testing.assert_allclose(next(layer.blocks()).covariance, np.cov(h, bias=True), rtol=1e-3, atol=1e-4)
