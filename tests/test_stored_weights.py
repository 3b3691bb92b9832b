"""Weights without an integer kernel are stored in 8 bits, and go back to float where that is no use."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import sparsecc
from sparsecc.passes.quantize import Quantize
from sparsecc.plan import Plan
from tests.compilations import compilation
from tests.quantize_models import feeds_for, weighted
from tests.test_quantize import outputs, relative_error

UP = """g (float[1,32,8,8] x, WEIGHTS) => (float[1,16,32,32] y) {
    a = ConvTranspose<strides = [2,2]>(x, up)
    b = Relu(a)
    y = ConvTranspose<strides = [2,2], pads = [1,1,1,1], group = 2>(b, grouped)
}"""
UP_SIZES: dict[str, tuple[int, ...]] = {"up": (32, 64, 2, 2), "grouped": (64, 8, 4, 4)}


def _recurrent(operator: str, gates: int) -> tuple[str, dict[str, tuple[int, ...]]]:
    text = f"""g (float[5,1,32] x, WEIGHTS) => (float[5,2,1,32] y) {{
        y = {operator}<hidden_size = 32, direction = "bidirectional">(x, w, r)
    }}"""
    return text, {"w": (2, gates * 32, 32), "r": (2, gates * 32, 32)}


def quantized(
    text: str, sizes: dict[str, tuple[int, ...]], target: str = "onnxruntime", **options: Any
) -> tuple[Counter[str], float, Any]:
    model = weighted(text, sizes)
    for number, node in enumerate(model.graph):
        node.name = f"{node.op_type}_{number}"
    feeds = feeds_for(model)
    before = outputs(model, feeds)
    given = compilation(target, [feeds], measure=False)
    result = Quantize(type="int8", **options).run(model, Plan({}), given)
    kinds = Counter(node.op_type for node in model.graph)
    return kinds, relative_error(before, outputs(model, feeds)), result


def test_transposed_convolutions_read_8_bits_and_multiply_in_float() -> None:
    kinds, error, result = quantized(UP, UP_SIZES)
    assert kinds["ConvTranspose"] == 2
    assert kinds["DequantizeLinear"] == 2
    assert 0 < error < 1e-3
    assert result.facts["nodes"] == ["ConvTranspose_0", "ConvTranspose_2"]
    assert result.facts["weight_sqnr_db"]["up"] > 35
    assert not result.remarks
    assert quantized(UP, UP_SIZES, exclude=("up",))[2].facts["nodes"] == ["ConvTranspose_2"]


@pytest.mark.parametrize(("operator", "gates"), [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
@pytest.mark.parametrize("target", ["onnxruntime", "onnx"])
def test_recurrent_weights_are_stored_or_run_in_the_integer_lstm(
    operator: str, gates: int, target: str
) -> None:
    text, sizes = _recurrent(operator, gates)
    if operator == "RNN":
        sizes = {"w": (2, 32, 96), "r": (2, 32, 32)}
        text = text.replace("float[5,1,32] x", "float[5,1,96] x")
    kinds, error, _ = quantized(text, sizes, target)
    if operator == "LSTM" and target == "onnxruntime":
        assert kinds["DynamicQuantizeLSTM"] == 1
    else:
        assert kinds[operator] == 1
        assert kinds["DequantizeLinear"] == 2
    assert 0 < error < 1e-2


def test_by_table_recurrent_weights_stay_float_and_others_do_not() -> None:
    text, sizes = _recurrent("GRU", 3)
    facts = quantized(text, sizes, only_what_pays=True)[2].facts
    assert facts["nodes"] == []
    assert facts["speed"]["left_in_float"] == ["GRU_0"]
    assert len(quantized(UP, UP_SIZES, only_what_pays=True)[2].facts["nodes"]) == 2


def test_a_compile_is_proved_and_its_file_smaller(tmp_path: Path) -> None:
    model = weighted(UP, UP_SIZES)
    ir.save(model, tmp_path / "model.onnx")
    np.savez(tmp_path / "c.npz", x=feeds_for(model)["x"])
    made = sparsecc.compile(
        tmp_path / "model.onnx",
        quantize="int8!",
        calib=tmp_path / "c.npz",
        output=tmp_path / "out",
        measure=False,
    )
    assert made.report["verification"]["status"] == "proved"
    before, after = ((tmp_path / name).stat().st_size for name in ("model.onnx", "out/model.onnx"))
    assert after < 0.4 * before
    kinds = {tensor.data_type for tensor in onnx.load(tmp_path / "out" / "model.onnx").graph.initializer}
    assert onnx.TensorProto.INT8 in kinds
