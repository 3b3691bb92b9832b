"""What ONNX Runtime makes of the float parts of quantized transformers: no fused sum and norm, fused GELUs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from sparsecc.passes.quantize import Quantize
from sparsecc.passes.quantize.runtime_fusions import suit_kernels
from sparsecc.runtime.session import open_session
from tests.quantize_models import feeds_for, weighted
from tests.test_quantize import apply, kernels, operators

NORMS = {
    "operator": "n = LayerNormalization(s, scale, bias)",
    "as older exporters": """m = ReduceMean<axes = [-1]>(s) c = Sub(s, m) q = Pow(c, two)
        z = ReduceMean<axes = [-1]>(q) e = Add(z, tiny) r = Sqrt(e)
        d = Div(c, r) f = Mul(d, scale) n = Add(f, bias)""",
    "fused": "n = com.microsoft.SkipLayerNormalization(x, p, scale, bias)",
}
GELU = "h = Div(w1, root) i = Erf(h) j = Add(i, one) k = Mul(half, j) g = Mul(w1, k)"


def _model(norm: str, gelu: str = GELU) -> ir.Model:
    model = weighted(
        f"""block (float[2,16,64] x, WEIGHTS) => (float[2,16,64] y)
            <float one = {{1}}, float half = {{0.5}}, float root = {{1.4142135381698608}},
             float tiny = {{1e-5}}, float two = {{2}}> {{
            p = MatMul(x, w)
            s = Add(x, p)
            {norm}
            w1 = MatMul(n, v)
            {gelu}
            y = MatMul(g, u)
        }}""",
        {"w": (64, 64), "v": (64, 256), "u": (256, 64), "scale": (64,), "bias": (64,)},
    )
    model.opset_imports[""] = 17
    model.opset_imports["com.microsoft"] = 1
    return model


@pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS)
@pytest.mark.parametrize("type_", ["int8", "int8-dynamic", "int4"])
def test_sums_stay_apart_from_norms_and_gelus_are_fused(norm: str, type_: str, tmp_path: Path) -> None:
    model = _model(norm)
    feeds = feeds_for(model)
    before = open_session(model).run(feeds)["y"]
    assert "SkipLayerNormalization" in kernels(model, tmp_path), "ONNX Runtime fuses by itself"
    apply(Quantize(type=type_), model, feeds=[feeds])
    run = kernels(model, tmp_path)
    assert "SkipLayerNormalization" not in run
    assert run["LayerNormalization"] == 1
    assert run["Gelu"] + run["BiasGelu"] + run["QuickGelu"] == 1
    after = open_session(model).run(feeds)["y"]
    assert np.square(after - before).mean() < 2e-2 * np.square(before).mean()


def test_the_numbers_stay_the_same_bit_by_bit() -> None:
    model = _model(NORMS["operator"])
    feeds = feeds_for(model)
    before = open_session(model, level="none").run(feeds)["y"]
    assert suit_kernels(model) == 2
    np.testing.assert_array_equal(open_session(model, level="none").run(feeds)["y"], before)


@pytest.mark.parametrize(
    "gelu",
    [
        "h = Div(w1, root) i = Erf(h) j = Add(i, one) k = Mul(half, j) t = Neg(k) o = Mul(w1, k) g = Add(o, t)",
        "h = Div(w1, root) i = Erf(h) j = Add(i, one) k = Mul(half, j) o = Relu(w1) g = Mul(o, k)",
        "h = Div(w1, root) i = Erf(h) j = Add(i, one) k = Mul(w1, j) g = Mul(k, half)",
        "h = Div(w1, root) i = Erf(h) j = Add(i, one) k = Mul(root, j) g = Mul(w1, k)",
    ],
    ids=["read twice", "another factor", "known already", "no power of two"],
)
def test_other_uses_of_erf_are_left(gelu: str) -> None:
    model = _model("n = Identity(s)", gelu)
    before = ir.to_proto(model).SerializeToString()
    assert suit_kernels(model) == 0
    assert ir.to_proto(model).SerializeToString() == before


@pytest.mark.parametrize(("type_", "target"), [("fp16", "onnxruntime"), ("int8", "tensorrt")])
def test_other_types_and_targets_are_left(type_: str, target: str) -> None:
    model: Any = _model(NORMS["operator"])
    apply(Quantize(type=type_), model, target, [feeds_for(model)])
    assert not operators(model)["Sum"]
