"""16-bit models run on the CPU as a device would: each node sums in float32 and rounds its result."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from sparsecc import api
from sparsecc.backends.nvidia.rtx_engine import TensorrtRtx
from sparsecc.errors import InputError
from sparsecc.passes.quantize import Quantize
from sparsecc.runtime.session import open_session
from tests.test_quantize import apply

TEXT = """<ir_version: 10, opset_import: ["" : 22]>
g (float[3,64] x) => (float[3,8] y) {
    a = Cast<to = 16>(x)
    b = MatMul(a, w)
    c = Relu(b)
    d = MatMul(c, v)
    y = Cast<to = 1>(d)
}"""


def _saved(path: Path, text: str = TEXT) -> dict[str, np.ndarray]:
    """Write the model; returns its weights as float32 of bfloat16's numbers."""
    model = ir.from_onnx_text(text)
    rng = np.random.default_rng(0)
    arrays = {"w": (64, 32), "v": (32, 8)}
    weights = {name: rng.standard_normal(shape).astype(ml_dtypes.bfloat16) for name, shape in arrays.items()}
    for name, array in weights.items():
        tensor = ir.tensor(array, dtype=ir.DataType.BFLOAT16, name=name)
        value = ir.Value(
            name=name, const_value=tensor, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype)
        )
        for node in model.graph:
            for index, read in enumerate(node.inputs):
                if read is not None and read.name == name:
                    node.replace_input_with(index, value)
        model.graph.register_initializer(value)
    ir.save(model, path)
    return {name: array.astype(np.float32) for name, array in weights.items()}


def _rounded(array: np.ndarray) -> np.ndarray:
    return np.asarray(array.astype(ml_dtypes.bfloat16).astype(np.float32))


@pytest.mark.parametrize("level", ["none", "all"])
def test_every_value_is_rounded_and_no_sum_is(level: str, tmp_path: Path) -> None:
    weights = _saved(tmp_path / "model.onnx")
    x = np.random.default_rng(1).standard_normal((3, 64)).astype(np.float32)
    middle = _rounded(np.maximum(_rounded(x) @ weights["w"], 0))
    wanted = _rounded(middle @ weights["v"])
    found = open_session(tmp_path / "model.onnx", level=level).run({"x": x})["y"]
    step = np.abs(wanted) * 2.0**-7 + 1e-6
    assert (np.abs(found - wanted) <= step).all()
    assert (found == _rounded(found)).all()
    assert np.abs(found - np.maximum(x @ weights["w"], 0) @ weights["v"]).max() > 1e-3


def test_other_operators_without_a_kernel_are_still_refused(tmp_path: Path) -> None:
    model = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["" : 22]> g (uint16[3] x) => (uint16[3] y) { y = Neg(x) }'
    )
    ir.save(model, tmp_path / "model.onnx")
    with pytest.raises(InputError, match="refuses it"):
        open_session(tmp_path / "model.onnx")


def test_a_whole_compile_in_bfloat16(models_dir: Path, tmp_path: Path) -> None:
    made = api.compile(
        models_dir / "digits_resnet.onnx",
        target="onnx", ratio=0.0, quantize="bf16", measure=False, output=tmp_path / "out",
    )  # fmt: skip
    assert 20 < made.report["fidelity"]["quality_db"] < 60
    assert {entry["type"] for entry in made.plan["quantization"].values()} == {"bf16"}


def test_infinities_of_a_model_stay_what_they_are_in_half() -> None:
    """The logarithm of zero that a later Where drops, as in relative positions, is no overflow."""
    model = ir.from_onnx_text(
        """<ir_version: 10, opset_import: ["" : 18]>
        g (float[4] x) => (float[4] y) <float zero = {0.0}, float big = {40000.0}> {
            a = Log(x)
            c = Equal(x, zero)
            b = Where(c, x, a)
            d = Mul(x, big)
            y = Add(b, d)
        }"""
    )
    feeds = [{"x": np.array([0.0, 1.0, 0.5, 1.0], np.float32)}]
    result = apply(Quantize(type="fp16"), model, "tensorrt-rtx", feeds)[0]
    kept = {skip.where for skip in result.remarks}
    assert kept == {"Mul_3", "Add_4"}


def test_fp16_made_for_a_gpu_is_rounded_at_every_value(tmp_path: Path) -> None:
    """ONNX Runtime's CPU would hold the square of 300 and its root in float32."""
    model = ir.from_onnx_text(
        """<ir_version: 9, opset_import: ["" : 17]>
        g (float[2,4] x) => (float[2,4] y) {
            a = Mul(x, x)
            b = ReduceMean<axes = [-1]>(a)
            c = Sqrt(b)
            y = Div(x, c)
        }"""
    )
    apply(Quantize(type="fp16"), model, "tensorrt-rtx", [])
    ir.save(model, tmp_path / "model.onnx")
    x = np.array([[300, 300, -300, 300], [1.2345678, 1, 1, 1]], np.float32)
    found = TensorrtRtx().load(tmp_path / "model.onnx").run({"x": x})["y"]
    assert (found[0] == 0).all()
    assert (found == found.astype(np.float16)).all()
    half = x[1].astype(np.float16)
    mean = np.mean((half * half).astype(np.float32)).astype(np.float16)
    assert (found[1] == half / np.sqrt(mean)).all()
