"""Weights of layers in the bodies of loops and branches get fewer bits, too."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import sparsecc
from sparsecc.ir.subgraphs import one_scope
from sparsecc.passes.quantize import Quantize
from sparsecc.plan import Plan
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
