"""Weights of layers in the bodies of loops and branches get fewer bits, too."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import sparsecc
from sparsecc.ir.subgraphs import one_scope
from sparsecc.passes.quantize import Quantize
from sparsecc.passes.quantize.int8 import IN_BODY
from sparsecc.passes.quantize.underflow import UNSEEN
from sparsecc.plan import Plan
from sparsecc.runtime.numerics import sqnr
from sparsecc.runtime.session import open_session
from tests.compilations import compilation
from tests.quantize_models import weighted
from tests.test_quantize import outputs, relative_error

LOOP = """g (float[4,64] x, bool flag, WEIGHTS) => (float[4,64] y, float[4,64] z) {
    times = Constant<value = int64 {3}>()
    go = Constant<value = bool {1}>()
    y = Loop<body = b (int64 i, bool c, float[4,64] s) => (bool c2, float[4,64] s2) {
        p = MatMul(s, w)
        s2 = Tanh(p)
        c2 = Identity(c)
    }>(times, go, x)
    z = If<then_branch = t () => (float[4,64] a) { m = MatMul(y, v) a = Neg(m) },
           else_branch = e () => (float[4,64] o) { o = Gemm(x, v) }>(flag)
}"""


def loop() -> ir.Model:
    model = weighted(LOOP, {"w": (64, 64), "v": (64, 64)})
    one_scope(model)
    return model


@pytest.mark.parametrize(
    ("type_", "operator", "bound"),
    [
        ("int8-dynamic", "MatMulInteger", 1e-3),
        ("int4", "MatMulNBits", 5e-2),
        ("int8-weights", "MatMulNBits", 1e-3),
    ],
)
@pytest.mark.parametrize("flag", [True, False])
def test_layers_in_bodies_are_quantized(type_: str, operator: str, bound: float, flag: bool) -> None:
    model = loop()
    feeds = {
        "x": np.random.default_rng(1).standard_normal((4, 64)).astype(np.float32),
        "flag": np.array(flag),
    }
    before = outputs(model, feeds)
    result = Quantize(type=type_).run(model, Plan({}), compilation(feeds=[feeds]))
    assert len(result.facts["nodes"]) == 3
    kinds = Counter(node.op_type for node in model.graph.all_nodes())
    assert kinds[operator] == 3
    assert not kinds["MatMul"] + kinds["Gemm"]
    assert 0 < relative_error(before, outputs(model, feeds)) < bound


def test_a_compile_makes_their_file_smaller(tmp_path: Path) -> None:
    ir.save(loop(), tmp_path / "model.onnx")
    made = sparsecc.compile(tmp_path / "model.onnx", quantize="int4!", output=tmp_path / "out", measure=False)
    assert made.report["verification"]["runs"]
    assert "losses" not in made.report["verification"]
    before, after = ((tmp_path / name).stat().st_size for name in ("model.onnx", "out/model.onnx"))
    assert after < 0.4 * before


CONVOLUTIONS = """g (float[1,16,12,12] x, bool flag, WEIGHTS) => (float[1,16,12,12] y, float[1,16,12,12] z) {
    times = Constant<value = int64 {3}>()
    go = Constant<value = bool {1}>()
    top0 = Conv<pads = [1,1,1,1]>(x, w, b)
    top = Relu(top0)
    y = Loop<body = body (int64 i, bool c, float[1,16,12,12] s) => (bool c2, float[1,16,12,12] s2) {
        p = Conv<pads = [1,1,1,1]>(s, w, b)
        q = Relu(p)
        r = Conv<pads = [1,1,1,1]>(q, v, b)
        t = Add(r, top)
        s2 = Tanh(t)
        c2 = Identity(c)
    }>(times, go, x)
    z = If<then_branch = t () => (float[1,16,12,12] a) { a = Conv<pads = [1,1,1,1]>(top, v, b) },
           else_branch = e () => (float[1,16,12,12] o) {
               m = Conv<pads = [1,1,1,1]>(top, w, b)
               n = MaxPool<kernel_shape = [3,3], pads = [1,1,1,1]>(m)
               k = Conv<pads = [1,1,1,1]>(n, v)
               o = Add(k, n)
           }>(flag)
}"""


def _convolutions() -> ir.Model:
    model = weighted(CONVOLUTIONS, {"w": (16, 16, 3, 3), "v": (16, 16, 3, 3), "b": (16,)})
    one_scope(model)
    return model


@pytest.mark.parametrize("scheme", ["auto", "qdq"])
@pytest.mark.parametrize("flag", [True, False])
@pytest.mark.parametrize(
    ("make", "kernels"),
    [
        pytest.param(_convolutions, {"QLinearConv": 6, "QLinearAdd": 2}, id="convolutions"),
        pytest.param(loop, {"MatMulIntegerToFloat": 2, "QGemm": 1}, id="products"),
    ],
)
def test_layers_in_bodies_run_on_integers_by_ranges_of_what_ran_in_them(
    make: Callable[[], ir.Model], kernels: dict[str, int], flag: bool, scheme: str, tmp_path: Path
) -> None:
    model = make()
    shape = model.graph.inputs[0].shape
    assert shape is not None
    rng = np.random.default_rng(1)
    feeds = {"x": rng.standard_normal(shape.numpy()).astype(np.float32), "flag": np.array(flag)}
    # A branch that no sample takes has no range: both are taken.
    seen = [feeds, feeds | {"flag": np.array(not flag)}]
    before = open_session(model).run(feeds)
    result = Quantize(type="int8", scheme=scheme).run(model, Plan({}), compilation(feeds=seen))
    layers = [node for node in model.graph.all_nodes() if node.op_type in ("Conv", "MatMul", "Gemm")]
    assert len(result.facts["nodes"]) == sum(n for k, n in kernels.items() if k != "QLinearAdd")
    after = open_session(model, optimized=tmp_path / "optimized.onnx").run(feeds)
    for name, exact in before.items():
        assert sqnr(exact, after[name]) > 25
    if scheme == "auto":
        run = Counter(node.op_type for node in ir.load(tmp_path / "optimized.onnx").graph.all_nodes())
        assert {kind: run[kind] for kind in kernels} == kernels
        assert not {"Conv", "FusedConv", "MatMul", "Gemm"} & set(run)
    else:
        assert layers


@pytest.mark.parametrize("option", [{"correct_bias": True}, {"algorithm": "gptq"}])
def test_layers_in_bodies_that_are_not_refined_are_told(option: dict[str, Any]) -> None:
    model = _convolutions()
    feeds = [{"x": np.ones((1, 16, 12, 12), np.float32), "flag": np.array(flag)} for flag in (True, False)]
    result = Quantize(type="int8", **option).run(model, Plan({}), compilation(feeds=feeds))
    inner = {node.name for body in model.graph.subgraphs() for node in body if node.op_type == "Conv"}
    assert len(inner) == 5
    assert {remark.where for remark in result.remarks if remark.reason == IN_BODY} == inner


def test_a_branch_that_no_sample_takes_stays_in_float() -> None:
    """It has no range: integers of it would all be zero."""
    model = _convolutions()
    feeds = {
        "x": np.random.default_rng(1).standard_normal((1, 16, 12, 12)).astype(np.float32),
        "flag": np.array(False),
    }
    taken = {**feeds, "flag": np.array(True)}
    before = open_session(model).run(feeds)
    result = Quantize(type="int8").run(model, Plan({}), compilation(feeds=[taken]))
    left = {remark.where for remark in result.remarks if remark.reason == UNSEEN}
    assert {name.split("_")[0] for name in left} == {"Conv", "MaxPool", "Add"}
    assert len(result.facts["nodes"]) == 4
    assert sqnr(before["z"], open_session(model).run(feeds)["z"]) > 30
