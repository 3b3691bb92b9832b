"""Weights that are so small that no scale of integers can be held in float32."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from sparsecc.ir.graph_editor import prepare
from sparsecc.passes.quantize import Quantize
from sparsecc.passes.quantize.underflow import TOO_FINE, UNDERFLOW, too_small
from sparsecc.runtime.session import open_session
from tests.quantize_models import feeds_for, weighted
from tests.test_quantize import apply


@pytest.mark.parametrize(
    ("type_", "target"),
    [
        *((type_, "onnxruntime") for type_ in ("int8", "int8-dynamic", "int8-weights", "int4")),
        *((type_, "tensorrt") for type_ in ("int8", "fp8", "int4")),
    ],
)
def test_weights_under_what_scales_can_hold_stay_in_float(type_: str, target: str) -> None:
    model = weighted(
        "two (float[N, 64] x, float[64, 64] tiny, float[64, 64] w) => (float y, float z) "
        "{ y = MatMul(x, tiny) z = MatMul(x, w) }",
        {"tiny": (64, 64), "w": (64, 64)},
    )
    prepare(model)
    weight = model.graph.initializers["tiny"]
    assert weight.const_value is not None
    weight.const_value = ir.tensor(weight.const_value.numpy() * np.float32(1e-42), name="tiny")
    small, other = (node.name for node in model.graph)
    before = open_session(model).run(feeds := feeds_for(model))
    result, _ = apply(Quantize(type=type_), model, target, [feeds])
    assert result.facts["nodes"] == [other]
    assert [one.reason for one in result.remarks if one.where == small] == [UNDERFLOW]
    if target == "onnxruntime":
        assert before["y"].any()
        assert np.array_equal(open_session(model).run(feeds)["y"] != 0, before["y"] != 0)


def test_tables_and_recurrent_weights_under_what_scales_can_hold_are_named() -> None:
    sizes = {"table": (64, 64), "w": (1, 64, 64), "r": (1, 64, 64)}
    model = weighted(
        "rnn (int64[3, 2] rows, float[64, 64] table, float[1, 64, 64] w, float[1, 64, 64] r) => (float y) "
        "{ x = Gather(table, rows) y, h = RNN<hidden_size = 64>(x, w, r) }",
        sizes,
    )
    prepare(model)
    assert too_small(model) == ()
    for name, scale in (("table", 1e-42), ("r", 1e-37)):
        array = model.graph.initializers[name].const_value
        assert array is not None
        largest = np.abs(array.numpy()).max()
        model.graph.initializers[name].const_value = ir.tensor(array.numpy() / largest * np.float32(scale))
    assert too_small(model) == tuple(node.name for node in model.graph)
    zero = ir.tensor(np.zeros((64, 64), np.float32))
    model.graph.initializers["table"].const_value = zero
    assert too_small(model) == (model.graph[-1].name,), "zeros lose nothing"


@pytest.mark.parametrize(
    ("target", "factor"), [("onnxruntime", 1e-40), ("onnxruntime", 1e-36), ("tensorrt", 1e-40)]
)
def test_values_under_what_scales_can_hold_leave_their_layers_in_float(target: str, factor: float) -> None:
    """At 1e-36 the scale of the values is a number, and its product with those of the weights is none."""
    model = weighted(
        "two (float[1,16,8,8] x, WEIGHTS) => (float y, float z) <float factor = {1.0}> "
        "{ small = Mul(x, factor) a = Conv(small, w) y = Conv(a, v) z = Conv(x, v) }",
        {"w": (16, 16, 3, 3), "v": (16, 16, 3, 3)},
    )
    prepare(model)
    model.graph.initializers["factor"].const_value = ir.tensor(np.float32(factor), name="factor")
    before = open_session(model).run(feeds := feeds_for(model))
    result, _ = apply(Quantize(type="int8"), model, target, [feeds])
    convs = [node.name for node in model.graph if node.op_type == "Conv"]
    assert result.facts["nodes"] == convs[2:]
    assert [one.where for one in result.remarks if one.reason == TOO_FINE] == convs[:2]
    assert before["y"].any()
    assert np.array_equal(open_session(model).run(feeds)["y"], before["y"])
