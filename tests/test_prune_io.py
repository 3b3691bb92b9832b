"""`--prune-io`: inputs and outputs of the compiled model are smaller, and what is left of them is right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from sparsecc import CompileResult, api
from sparsecc.reference.pruned_io import Narrowed
from sparsecc.runtime.session import open_session
from tests.rule_checks import model_of

TEXT = """(float[N,8] x, float[8,16] w1, float[16] w2, float[16,6] w3, float[6] w4) => (float[N,6] y)
{ h = Gemm(x, w1, w2) r = Relu(h) y = Gemm(r, w3, w4) }"""
EVAL = (
    "import numpy as np\ndef width(run):\n    return run({'x': np.ones((2, 8), np.float32)})['y'].shape[1]\n"
)


def compiled(folder: Path, **options: Any) -> CompileResult:
    onnx.save(model_of(TEXT), folder / "m.onnx")
    given: dict[str, Any] = {"ratio": 0.5, "recover": "none", "align": 1, **options}
    return api.compile(folder / "m.onnx", output=folder / "out", prune_io=("x", "y"), **given)


def test_what_is_left_of_inputs_and_outputs_is_right(tmp_path: Path) -> None:
    (tmp_path / "metric.py").write_text(EVAL)
    result = compiled(tmp_path, measure=False, evaluate=f"{tmp_path}/metric.py:width")
    narrowed = Narrowed.from_json(result.plan["io"])
    (kept_in,), (kept_out,) = narrowed.inputs["x"].values(), narrowed.outputs["y"].values()
    assert 0 < len(kept_in) < 8
    assert 0 < len(kept_out) < 6
    weights = {
        t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(tmp_path / "m.onnx").graph.initializer
    }
    hidden = result.plan["tensors"]["w2"]["0"]["keep"]
    x = np.random.default_rng(3).standard_normal((4, 8)).astype(np.float32)
    inner = np.maximum(x[:, kept_in] @ weights["w1"][np.ix_(kept_in, hidden)] + weights["w2"][hidden], 0)
    wanted = inner @ weights["w3"][np.ix_(hidden, kept_out)] + weights["w4"][kept_out]
    found = open_session(tmp_path / "out" / "model.onnx").run({"x": x[:, kept_in]})["y"]
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
    assert result.report["verification"]["oracle"] == "masked dense model"
    assert result.report["accuracy"] == {"metric": "width", "before": 6.0, "after": float(len(kept_out))}
    checks = {c["check"]: c["ok"] for c in api.verify(tmp_path / "out", model=tmp_path / "m.onnx")["checks"]}
    assert checks["numerics"]


def test_a_smaller_input_is_timed_beside_the_whole_one(tmp_path: Path) -> None:
    latency = compiled(tmp_path).report["latency"]
    assert latency["speedup"]["estimate"] > 0


def test_the_batch_stays_and_so_does_what_is_dynamic(tmp_path: Path) -> None:
    text = """(float[N,M,8] x, float[8,6] w1) => (float[N,M,6] y) { y = MatMul(x, w1) }"""
    onnx.save(model_of(text), tmp_path / "m.onnx")
    result = api.compile(
        tmp_path / "m.onnx", output=tmp_path / "out", ratio=0.5, align=1, prune_io=("*",), measure=False
    )
    assert {axis for side in result.plan["io"].values() for axes in side.values() for axis in axes} == {"2"}


WORDS = """(int64[N,M] ids, float[20,8] w1, float[8,8] w2, float[8,20] w3) => (float[N,M,20] out, float[N,M,8] h)
{ e = Gather(w1, ids) h = MatMul(e, w2) out = MatMul(h, w3) }"""
CLASSES = """(float[N,8] x, float[8,16] w1, float[16,6] w2) => (float[N,6] scores, float[N,16] r)
{ h = MatMul(x, w1) r = Relu(h) scores = MatMul(r, w2) }"""


@pytest.mark.parametrize(
    ("text", "answers", "weight"),
    [(WORDS, "out", "w3:1"), (CLASSES, "scores", "w2:1")],
    ids=["words", "classes"],
)
def test_answers_go_by_name_alone(text: str, answers: str, weight: str, tmp_path: Path) -> None:
    """A glob does not ask for words and classes."""
    onnx.save(model_of(text), tmp_path / "m.onnx")
    options: dict[str, Any] = {"ratio": 0.5, "metric": "channels", "align": 1, "measure": False}
    result = api.compile(tmp_path / "m.onnx", output=tmp_path / "all", prune_io=("*",), **options)
    assert answers not in result.plan["io"].get("outputs", {})
    assert any(f"leaves '{answers}' whole" in told for told in result.report["warnings"])
    options |= {"prune_io": ("*", answers), "only": [weight]}
    named = api.compile(tmp_path / "m.onnx", output=tmp_path / "named", **options)
    assert answers in named.plan["io"]["outputs"]


def test_without_the_flag_inputs_and_outputs_stay(tmp_path: Path) -> None:
    onnx.save(model_of(TEXT), tmp_path / "m.onnx")
    result = api.compile(tmp_path / "m.onnx", output=tmp_path / "out", ratio=0.3, align=1, measure=False)
    assert "io" not in result.plan
    (model_input,) = onnx.load(tmp_path / "out" / "model.onnx").graph.input
    assert model_input.type.tensor_type.shape.dim[1].dim_value == 8


@pytest.mark.parametrize("data", [{}, {"inputs": {"x": {"1": [0, 2]}}, "outputs": {"y": {"0": [1]}}}])
def test_it_is_plain_data(data: dict[str, object]) -> None:
    assert Narrowed.from_json(data).to_json() == data
