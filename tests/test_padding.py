"""Zeros before a maximum reach the result, however the runtime optimizes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

import sparsecc
from sparsecc.loading.maxpool_padding import TINY
from sparsecc.loading.normalise import GUARDED, normalise

POOL = "MaxPool<kernel_shape = [3, 3], strides = [2, 2]>"


def model_of(body: str, opset: int = 17, kind: str = "float") -> ir.Model:
    """Padded at two ends and pooled; `sizes` and two numbers are there to be read."""
    return ir.from_onnx_text(
        f'<ir_version: 8, opset_import: ["": {opset}]> g ({kind}[n, 2, 6, 6] x) => ({kind}[n, 2, h, w] y) '
        "<int64[8] sizes = {0, 0, 0, 0, 0, 0, 1, 1}, float five = {5.0}, float zero = {0.0}> "
        + f"{{ {body} }}"
    )


def run(model: ir.Model, level: ort.GraphOptimizationLevel) -> np.ndarray:
    options = ort.SessionOptions()
    options.graph_optimization_level = level
    options.log_severity_level = 3
    data = ir.to_proto(model).SerializeToString()
    session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    kinds = {"tensor(float16)": np.float16, "tensor(double)": np.float64}
    kind = kinds.get(session.get_inputs()[0].type, np.float32)
    x = -np.arange(1, 73).reshape(1, 2, 6, 6).astype(kind)
    return np.asarray(session.run(None, {"x": x})[0])


MISREAD = {
    "zero": (f"p = Pad(x, sizes, zero) y = {POOL}(p)", 17, "float"),
    "no value": (f"p = Pad(x, sizes) y = {POOL}(p)", 17, "float"),
    "as an attribute": (f"p = Pad<pads = [0, 0, 0, 0, 0, 0, 1, 1]>(x) y = {POOL}(p)", 10, "float"),
    "double": (f"p = Pad(x, sizes) y = {POOL}(p)", 17, "double"),
    "half": (f"p = Pad(x, sizes) y = {POOL}(p)", 17, "float16"),
    "turned into a half": (f"z = CastLike(zero, x) p = Pad(x, sizes, z) y = {POOL}(p)", 17, "float16"),
    "of an unsaid type": (f"a = Transpose(x) b = Transpose(a) p = Pad(b, sizes) y = {POOL}(p)", 17, "float"),
    "twice": (f"o = Pad(x, sizes) p = Pad(o, sizes) y = {POOL}(p)", 17, "float"),
}


@pytest.mark.parametrize(("body", "opset", "kind"), MISREAD.values(), ids=MISREAD)
def test_the_optimized_graph_keeps_the_zeros(body: str, opset: int, kind: str) -> None:
    model = model_of(body, opset, kind)
    expected = run(model, ort.GraphOptimizationLevel.ORT_DISABLE_ALL)
    assert (expected == 0).any()
    model = normalise(model)
    assert len(model.meta[GUARDED]) == 1
    for level in (ort.GraphOptimizationLevel.ORT_DISABLE_ALL, ort.GraphOptimizationLevel.ORT_ENABLE_ALL):
        np.testing.assert_allclose(run(model, level), expected, atol=TINY)


LEFT_ALONE = {
    "never negative": f"a = Relu(x) p = Pad(a, sizes, zero) y = {POOL}(p)",
    "another number": f"p = Pad(x, sizes, five) y = {POOL}(p)",
    "of no type there is": f"a = Cast<to = 99>(x) p = Pad(a, sizes) y = {POOL}(p)",
    "no constant": f'p = Pad<mode = "reflect">(x, sizes) y = {POOL}(p)',
    "no maximum": "p = Pad(x, sizes, zero) y = AveragePool<kernel_shape = [3, 3], strides = [2, 2]>(p)",
}


@pytest.mark.parametrize("body", LEFT_ALONE.values(), ids=LEFT_ALONE)
def test_where_nothing_is_lost_nothing_changes(body: str) -> None:
    model = normalise(model_of(body))
    assert model.meta[GUARDED] == []
    assert not any(name.endswith(".tiny") for name in model.graph.initializers)


@pytest.mark.parametrize("quantize", [None, "fp16", "int8"])
def test_a_compile_says_so_and_is_right(quantize: str | None, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    shapes = {"first": (16, 3, 3, 3), "low": (16,), "last": (4, 16, 1, 1)}
    arrays = {name: rng.normal(-2 if name == "low" else 0, 0.3, shape) for name, shape in shapes.items()}
    model = ir.from_onnx_text(
        '<ir_version: 8, opset_import: ["": 17]> g (float[n, 3, 8, 8] x) => (float[n, 4, h, w] y) '
        "<int64[8] sizes = {0, 0, 0, 0, 0, 0, 1, 1}> "
        f"{{ c = Conv(x, first, low) p = Pad(c, sizes) m = {POOL}(p) y = Conv(m, last) }}",
        initializers=[ir.tensor(array.astype(np.float32), name=name) for name, array in arrays.items()],
    )
    ir.save(model, tmp_path / "m.onnx")
    np.savez(tmp_path / "x.npz", x=rng.normal(size=(8, 3, 8, 8)).astype(np.float32))
    result = sparsecc.compile(
        tmp_path / "m.onnx",
        quantize=quantize,
        calib=str(tmp_path / "x.npz"),
        measure=False,
        output=tmp_path / "out",
    )
    assert any("loses the zeros of Pad" in warning for warning in result.report["warnings"])
    assert result.report["fidelity"]["quality_db"] > (30 if quantize == "int8" else 55)
