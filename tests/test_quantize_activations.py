"""Activations between integer layers: which run on integers of ONNX Runtime, and which stay in float."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparsecc.passes.quantize import Quantize
from tests.quantize_models import feeds_for, weighted
from tests.test_quantize import apply, kernels, outputs, relative_error


@pytest.mark.parametrize(("behind", "integer"), [("c = Conv(s, v)", True), ("c = Softplus(s)", False)])
def test_a_swish_between_integer_layers_is_of_integers(behind: str, integer: bool, tmp_path: Path) -> None:
    """x * sigmoid(x) of a Conv, as SiLU is exported; before a float operator it stays in float, whose kernels need no
    range of it."""
    text = f"""swish (float[1,16,12,12] x, WEIGHTS) => (float[1,16,12,12] y) {{
        a = Conv(x, w) g = Sigmoid(a) s = Mul(a, g) {behind} y = Relu(c) }}"""
    size = (16, 16, 1, 1)
    model = weighted(text, {"w": size, **({"v": size} if integer else {})})
    feeds = feeds_for(model)
    before = outputs(model, feeds)
    apply(Quantize(type="int8"), model, feeds=[feeds])
    census = kernels(model, tmp_path)
    assert (census["QLinearSigmoid"], census["QLinearMul"]) == ((1, 1) if integer else (0, 0))
    assert census["QLinearConv"] == (2 if integer else 1)
    assert relative_error(before, outputs(model, feeds)) < 0.001


def test_a_sigmoid_that_others_read_or_that_gates_another_value_stays_float(tmp_path: Path) -> None:
    text = """gates (float[1,16,12,12] x, WEIGHTS) => (float[1,16,12,12] y, float[1,16,12,12] g) {
        a = Conv(x, w) g = Sigmoid(a) s = Mul(a, g) b = Conv(s, v) h = Sigmoid(b) t = Mul(a, h) y = Conv(t, u) }"""
    model = weighted(text, dict.fromkeys("wvu", (16, 16, 1, 1)))
    apply(Quantize(type="int8"), model, feeds=[feeds_for(model)])
    census = kernels(model, tmp_path)
    assert (census["QLinearSigmoid"], census["QLinearMul"]) == (0, 0)


@pytest.mark.parametrize("left", ["one", "other"])
def test_a_sum_whose_convolution_stays_in_float_needs_no_range_of_the_other_side(left: str) -> None:
    """TensorRT takes the side of a sum that no convolution in 8 bits makes; where another one stays in float, that is
    the side whose range nobody looked at."""
    text = """sums (float[1,16,8,8] x, WEIGHTS) => (float[1,16,8,8] y) {
        r = Relu(x) a = Conv(r, w) b = Conv(r, v) s = Add(a, b) y = Relu(s) }"""
    model = weighted(text, dict.fromkeys("wv", (16, 16, 1, 1)))
    for name, node in zip(("one", "other"), (n for n in model.graph if n.op_type == "Conv"), strict=True):
        node.name = name
    feeds = feeds_for(model)
    before = outputs(model, feeds)
    result, plan = apply(Quantize(type="int8", exclude=(left,)), model, "tensorrt", [feeds])
    assert result.facts["nodes"] == [{"one": "other", "other": "one"}[left]]
    assert set(plan.quantization) <= {"r", "w", "v", "a", "b"}
    assert relative_error(before, outputs(model, feeds)) < 0.001
