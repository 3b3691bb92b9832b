"""Models in float16, with integers at their borders, or quantized already: quantized, or left alone and told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from sparsecc.errors import InternalError
from sparsecc.passes.quantize import Quantize
from sparsecc.runtime.session import open_session
from sparsecc.verify.built import require_same
from tests.quantize_models import weighted
from tests.test_quantize import apply, kernels, operators, outputs

TEXT = """g (float[4,3,16,16] x, WEIGHTS) => (float[4,64] y) <int64[2] flat = {4, 8192}> {
    a = Conv<pads = [1, 1, 1, 1]>(x, w1, b1)
    b = Relu(a)
    r = Reshape(b, flat)
    c = MatMul(r, w2)
    d = Add(c, table)
    y = Relu(d)
}"""
SIZES = {"w1": (32, 3, 3, 3), "b1": (32,), "w2": (8192, 64), "table": (4, 64)}


def half_model() -> ir.Model:
    """The network above in float16, inputs and outputs too."""
    model = weighted(TEXT, SIZES)
    for value in model.graph.initializers.values():
        if value.const_value is not None and value.const_value.dtype == ir.DataType.FLOAT:
            value.const_value = ir.tensor(value.const_value.numpy().astype(np.float16), name=value.name)
            value.type = ir.TensorType(ir.DataType.FLOAT16)
    for value in (*model.graph.inputs, *model.graph.outputs):
        value.type = ir.TensorType(ir.DataType.FLOAT16)
    return model


def _feeds() -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(1).standard_normal((4, 3, 16, 16)).astype(np.float16)}


@pytest.mark.parametrize("type_", ["int8", "int8-dynamic", "int4"])
def test_a_float16_model_is_quantized_and_keeps_its_borders(type_: str, tmp_path: Path) -> None:
    model, feeds = half_model(), _feeds()
    before = outputs(model, feeds)
    result, plan = apply(Quantize(type=type_), model, feeds=[feeds])
    after = outputs(model, feeds)
    assert result.facts["nodes"]
    assert {value["type"] for name, value in plan.quantization.items() if name == "w2"} == {
        type_.split("-")[0]
    }
    assert {value.dtype for value in (*model.graph.inputs, *model.graph.outputs)} == {ir.DataType.FLOAT16}
    assert after.dtype == np.float16
    error = np.abs(after.astype(np.float32) - before).max()
    assert error < (0.3 if type_ == "int4" else 0.05) * np.abs(before).max()
    if type_ == "int8":
        assert kernels(model, tmp_path)["QLinearConv"] == 1


def test_what_stays_in_float_keeps_its_16_bits_in_the_file() -> None:
    model = half_model()
    apply(Quantize(type="int8", exclude=("MatMul_3",)), model, feeds=[_feeds()])
    layer = next(node for node in model.graph if node.op_type == "MatMul")
    casts = [node for node in model.graph if node.op_type == "Cast" and node.outputs[0] is layer.inputs[1]]
    assert [value.dtype for node in casts for value in node.inputs if value is not None] == [
        ir.DataType.FLOAT16
    ]


def test_on_tensorrt_the_rest_stays_in_float16() -> None:
    model = half_model()
    apply(Quantize(type="int8"), model, "tensorrt", [_feeds()])
    assert (
        next(node for node in model.graph if node.op_type == "Relu").outputs[0].dtype == ir.DataType.FLOAT16
    )


def test_integers_at_the_borders_make_no_quantized_model(tmp_path: Path) -> None:
    """An image of bytes that is dequantized first, and a result that is quantized last."""
    model = weighted(
        """g (uint8[1,3,16,16] x, WEIGHTS) => (uint8[1,32,14,14] y)
        <float scale = {0.0039}, uint8 zero = {0}, float step = {0.02}> {
            f = DequantizeLinear(x, scale, zero)
            a = Conv(f, w1)
            b = Relu(a)
            y = QuantizeLinear(b, step, zero)
        }""",
        {"w1": (32, 3, 3, 3)},
    )
    feeds = {"x": np.random.default_rng(1).integers(0, 255, (1, 3, 16, 16)).astype(np.uint8)}
    before = outputs(model, feeds)
    result = apply(Quantize(type="int8"), model, feeds=[feeds])[0]
    assert result.facts["nodes"]
    assert kernels(model, tmp_path)["QLinearConv"] == 1
    assert np.abs(outputs(model, feeds).astype(int) - before).max() <= 2
    assert operators(model)["DequantizeLinear"] > 1


def test_a_step_of_a_quantized_tensor_is_no_fault_however_small_a_channel() -> None:
    """Integer kernels round at other places, by a step; that is much of a small channel. More than 5 % is a fault."""
    model = ir.from_onnx_text("""<ir_version: 9, opset_import: ["" : 19]>
        g (float[1,2,16] x) => (float[1,2,16] y) <float step = {1.0}, uint8 zero = {0}> {
            a = QuantizeLinear(x, step, zero)
            y = DequantizeLinear(a, step, zero)
        }""")
    x = np.random.default_rng(0).integers(0, 250, (1, 2, 16)).astype(np.float32)
    x[:, 1] = 4.0
    plain = open_session(model, level="none")
    wanted = plain.run({"x": x})
    require_same(model, lambda: plain, {"x": x}, wanted, {"y": wanted["y"] + 1}, open_session)
    with pytest.raises(InternalError, match="differs"):
        require_same(model, lambda: plain, {"x": x}, wanted, {"y": wanted["y"] + 25}, open_session)
