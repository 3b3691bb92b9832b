"""Which nodes become integers for ONNX Runtime: those for which it has a kernel, at no scale that serves nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sparsecc.passes.quantize import Quantize
from tests.quantize_models import weighted
from tests.test_quantize import apply, kernels, outputs


def _feeds(*shape: int) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(1).standard_normal(shape).astype(np.float32)}


@pytest.mark.parametrize("activation", ["Relu(a)", "Clip(a, zero, six)"])
@pytest.mark.parametrize(
    "behind",
    [
        "s = LayerNormalization(r, gain__var)",
        "s = BatchNormalization(r, gain__var, gain__var, gain__var, gain__var)",
        "s = Concat<axis = 0>(r, x)",
        "s = Reshape(r, twice)",
        "s = Add(r, x)",
    ],
)
def test_an_activated_gemm_runs_in_int8_whatever_stands_behind_it(
    activation: str, behind: str, tmp_path: Path
) -> None:
    model = weighted(
        f"""g (float[4,64] x, WEIGHTS) => (float[n,64] y)
        <float zero = {{0.0}}, float six = {{6.0}}, int64[2] twice = {{-1, 64}}> {{
            a = Gemm(x, w1, b1)
            r = {activation}
            {behind}
            y = Gemm(s, w2, b2)
        }}""",
        {"w1": (64, 64), "b1": (64,), "w2": (64, 64), "b2": (64,), "gain__var": (64,)},
    )
    feeds = _feeds(4, 64)
    before = outputs(model, feeds)
    apply(Quantize(type="int8"), model, feeds=[feeds])
    census = kernels(model, tmp_path)
    assert (census["QGemm"], census["Gemm"], census["FusedGemm"]) == (2, 0, 0)
    assert np.abs(outputs(model, feeds) - before).max() < 0.05 * np.abs(before).max()


def test_boxes_and_scores_get_no_scale_in_common_where_nothing_integer_reads_them() -> None:
    """Boxes are a thousand times as large: at their scale every score is one value."""
    text = """g (float[1,16,8,8] x, WEIGHTS) => (float[1,n,m] y) <int64[3] flat = {1, 8, 64}, float size = {1000.0}> {
        b = Conv(x, w1)
        large = Mul(b, size)
        boxes = Conv(large, w2)
        scores = Conv(x, w3)
        both = Concat<axis = 1>(boxes, scores)
        y = Reshape(both, flat)
    }"""
    model = weighted(text, {"w1": (16, 16, 1, 1), "w2": (4, 16, 1, 1), "w3": (4, 16, 1, 1)})
    feeds = _feeds(1, 16, 8, 8)
    before = outputs(model, feeds)[:, 4:]
    result = apply(Quantize(type="int8"), model, feeds=[feeds])[0]
    after = outputs(model, feeds)[:, 4:]
    assert np.abs(after - before).max() < 0.05 * np.abs(before).max()
    assert any("one scale" in skip.reason for skip in result.remarks)


def test_a_concat_between_integers_stays_one(tmp_path: Path) -> None:
    text = """g (float[1,16,8,8] x, WEIGHTS) => (float[1,8,8,8] y) {
        a = Conv(x, w1)
        b = Conv(x, w2)
        c = Concat<axis = 1>(a, b)
        y = Conv(c, w3)
    }"""
    model = weighted(text, {"w1": (16, 16, 1, 1), "w2": (16, 16, 1, 1), "w3": (8, 32, 1, 1)})
    apply(Quantize(type="int8"), model, feeds=[_feeds(1, 16, 8, 8)])
    census = kernels(model, tmp_path)
    assert (census["QLinearConv"], census["Concat"] + census["QLinearConcat"]) == (3, 1)
    assert census["QuantizeLinear"] == 1


@pytest.mark.parametrize("between", ["p", "Transpose<perm = [0, 1, 3, 2]>(p)"])
def test_a_dilated_average_pool_between_convolutions_can_be_run(between: str, tmp_path: Path) -> None:
    text = f"""g (float[1,16,15,15] x, WEIGHTS) => (float[1,16,n,n] y) {{
        a = Conv(x, w1)
        p = AveragePool<kernel_shape = [2, 2], dilations = [2, 2]>(a)
        t = {between if "(" in between else f"Identity({between})"}
        y = Conv(t, w2)
    }}"""
    model = weighted(text, {"w1": (16, 16, 3, 3), "w2": (16, 16, 3, 3)})
    feeds = _feeds(1, 16, 15, 15)
    before = outputs(model, feeds)
    result = apply(Quantize(type="int8"), model, feeds=[feeds])[0]
    assert kernels(model, tmp_path)["QLinearConv"] == 1
    assert np.abs(outputs(model, feeds) - before).max() < 0.05 * np.abs(before).max()
    assert any("dilations" in skip.reason for skip in result.remarks)
