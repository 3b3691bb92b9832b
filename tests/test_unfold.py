"""The optimized file holds no second copy of what its constants give."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from sparsecc.backends.ort.cpu import OnnxRuntimeCpu
from sparsecc.runtime.session import open_session
from tests.quantize_models import weighted

TIED = """g (int64[4] x, WEIGHTS) => (float[4,500] y) {
    e = Gather(table, x)
    h = MatMul(e, w)
    t = Transpose<perm = [1, 0]>(table)
    y = MatMul(h, t)
}"""
CHAIN = """g (int64[4] x, WEIGHTS) => (float[4,500] y) <int64[2] size = {64, 500}> {
    e = Gather(table, x)
    h = MatMul(e, w)
    d = Add(table, table)
    p = Reshape(d, size)
    q = Relu(d)
    r = Reshape(q, size)
    t = Mul(p, r)
    y = MatMul(h, t)
}"""
SINGLE = """g (float[4,64] x, WEIGHTS) => (float[4,500] y) {
    h = MatMul(x, w)
    t = Transpose<perm = [1, 0]>(table)
    y = MatMul(h, t)
}"""
FILLED = """g (float[1] x, WEIGHTS) => (float[300,300] y) <int64[2] size = {300, 300}> {
    a = Expand(one, size)
    b = Trilu<upper = 1>(a)
    y = Mul(x, b)
}"""
SIZES = {"table": (500, 64), "w": (64, 64)}


@pytest.mark.parametrize(
    ("text", "sizes", "back"),
    [
        pytest.param(TIED, SIZES, {"Transpose"}, id="tied table"),
        pytest.param(CHAIN, SIZES, {"Add", "Reshape", "Relu"}, id="a way that forks"),
        pytest.param(SINGLE, SIZES, set(), id="no copy"),
        pytest.param(FILLED, {"one": (1,)}, {"Expand", "Trilu"}, id="filled from one number"),
    ],
)
def test_the_file_is_no_larger_than_the_model(
    text: str, sizes: dict[str, tuple[int, ...]], back: set[str], tmp_path: Path
) -> None:
    model = weighted(text, sizes)
    ir.save(model, tmp_path / "before.onnx")
    shape = (4, 64) if "float[4,64] x" in text else (1,)
    feeds: dict[str, Any] = {"x": np.random.default_rng(0).standard_normal(shape).astype(np.float32)}
    if "int64[4] x" in text:
        feeds = {"x": np.array([3, 0, 499, 7])}
    OnnxRuntimeCpu().build(model, tmp_path, {}, lambda *_: None)
    before, after = (open_session(tmp_path / name).run(feeds)["y"] for name in ("before.onnx", "model.onnx"))
    np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-5)
    assert (tmp_path / "model.onnx").stat().st_size < 1.02 * (tmp_path / "before.onnx").stat().st_size + 500
    made = {node.op_type for node in ir.load(tmp_path / "model.onnx").graph}
    assert made & {"Transpose", "Add", "Reshape", "Relu", "Expand", "Trilu"} == back
