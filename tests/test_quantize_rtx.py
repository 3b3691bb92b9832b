"""Every graph lowered for TensorRT parses, types and builds in NVIDIA's own builder, without a GPU."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest

from sparsecc.backends.nvidia.api import RTX
from sparsecc.backends.nvidia.build import build_plan
from sparsecc.backends.nvidia.options import BuildOptions
from sparsecc.errors import InputError
from sparsecc.passes.quantize import Quantize
from sparsecc.passes.sparsity import Sparsify
from tests.quantize_models import convolutions, feeds_for, transformer, weighted
from tests.test_quantize import apply

pytestmark = [
    pytest.mark.rtx,
    pytest.mark.skipif(
        importlib.util.find_spec("tensorrt_rtx_bindings") is None,
        reason="pip install tensorrt-rtx-cu12-bindings tensorrt-rtx-cu12-libs",
    ),
]

MODELS: dict[str, Callable[[], ir.Model]] = {
    "residual": convolutions,
    "batchnorm": lambda: convolutions(batch_norm=True),
    "grouped": lambda: convolutions(group=4),
    "pointwise": lambda: convolutions(kernel=1, bias=False),
    "transformer": transformer,
}
STEPS: dict[str, list[Any]] = {
    "int8": [Quantize(type="int8")],
    "fp8": [Quantize(type="fp8")],
    "nvfp4": [Quantize(type="nvfp4")],
    "nvfp4+fp16": [Quantize(type="nvfp4", rest="fp16")],
    "mxfp8": [Quantize(type="mxfp8")],
    "mxfp8+fp16": [Quantize(type="mxfp8", rest="fp16")],
    "mxfp8+bf16": [Quantize(type="mxfp8", rest="bf16")],
    "int4": [Quantize(type="int4")],
    "int8-weights": [Quantize(type="int8-weights")],
    "int8-weights+fp16": [Quantize(type="int8-weights", rest="fp16")],
    "fp16": [Quantize(type="fp16")],
    "bf16": [Quantize(type="bf16")],
    "2:4": [Sparsify()],
    "int8+fp16": [Quantize(type="int8", rest="fp16")],
    "int8+bf16": [Quantize(type="int8", rest="bf16")],
    "fp8+fp16": [Quantize(type="fp8", rest="fp16")],
    "int4+fp16": [Quantize(type="int4", rest="fp16")],
    "2:4+int8": [Sparsify(), Quantize(type="int8")],
    "2:4+path": [Sparsify(eora=0.6)],
    "2:4+path+int8": [Sparsify(eora=0.6), Quantize(type="int8")],
    "int4+path": [Quantize(type="int4", eora=0.6)],
    "mixed+fp16": [Quantize(type="mixed", rest="fp16", max_drop=1e-3)],
    "2:4+fp16": [Sparsify(), Quantize(type="fp16")],
}


def build(path: Path, *, sparse: bool) -> int:
    """Bytes of the engine. InputError with what the parser or builder says."""
    options = BuildOptions(sparse_weights=sparse)
    facts = build_plan(RTX, path, path.with_suffix(".engine"), options, lambda what, share: None)
    return int(facts["plan_bytes"])


FAST = {"int8", "fp16", "2:4+int8"}
"""Built for every model in the default run; the others for `residual` and `transformer` there."""


def cases() -> list[Any]:
    """(model, steps), the heavier half marked slow."""
    return [
        pytest.param(
            name,
            steps,
            marks=() if steps in FAST or name in ("residual", "transformer") else pytest.mark.slow,
        )
        for name in sorted(MODELS)
        for steps in sorted(STEPS)
    ]


@pytest.mark.parametrize(("name", "steps"), cases())
def test_it_parses_and_builds(name: str, steps: str, tmp_path: Path) -> None:
    model = MODELS[name]()
    feeds = feeds_for(model)
    for step in STEPS[steps]:
        apply(step, model, "tensorrt-rtx", [feeds])
    ir.save(model, tmp_path / "model.onnx")
    assert build(tmp_path / "model.onnx", sparse="2:4" in steps) > 0


@pytest.mark.parametrize(
    "line",
    [
        "r = HardSwish(a)",
        "r = Mish(a)",
        "r = LpNormalization(a)",
        "r = MeanVarianceNormalization(a)",
        "r = GlobalLpPool(a)",
        "r = LpPool<kernel_shape = [2, 2]>(a)",
        "s = ReduceMean<keepdims = 0>(a, last)\n y, r = GRU<hidden_size = 8>(s, gates, again)",
    ],
)
def test_operators_that_the_parser_does_not_take_in_bf16_stay_float32(line: str, tmp_path: Path) -> None:
    text = (
        f"g (float[1,16,8,8] x, WEIGHTS) => (float r) <int64[1] last = {{3}}> {{ a = Conv(x, w)\n {line} }}"
    )
    model = weighted(text, {"w": (16, 16, 1, 1), "gates": (1, 24, 8), "again": (1, 24, 8)})
    model.opset_imports[""], model.graph.outputs[0].shape = 22, None
    result = apply(Quantize(type="bf16"), model, "tensorrt-rtx", [])[0]
    assert [skip.reason for skip in result.remarks if "takes no" in skip.reason]
    assert "Conv_0" in result.facts["nodes"]
    ir.save(model, tmp_path / "model.onnx")
    assert build(tmp_path / "model.onnx", sparse=False) > 0


def test_the_onnxruntime_form_would_be_refused(tmp_path: Path) -> None:
    model = convolutions()
    apply(Quantize(type="int8"), model, "onnxruntime", [feeds_for(model)])
    ir.save(model, tmp_path / "model.onnx")
    with pytest.raises(InputError, match="does not build: node"):
        build(tmp_path / "model.onnx", sparse=False)


def test_the_rest_is_half_and_both_types_are_recorded() -> None:
    model = transformer()
    plan = apply(Quantize(type="int8", rest="fp16"), model, "tensorrt-rtx", [feeds_for(model)])[1]
    kinds = {entry["type"] for entry in plan.quantization.values()}
    assert kinds == {"int8", "fp16"}
    halved = {v.dtype for node in model.graph for v in node.inputs if v is not None and v.is_initializer()}
    assert ir.DataType.FLOAT16 in halved


@pytest.mark.parametrize(
    ("type_", "rest", "words"),
    [
        ("int8", "int4", "rest is one of fp16, bf16, beside int8, int4, fp8, nvfp4 or mxfp8"),
        ("fp16", "bf16", "rest 'bf16' beside 'fp16'"),
        ("int8", "fp4", "does not accelerate 'fp4'"),
    ],
)
def test_a_rest_that_cannot_be_is_refused(type_: str, rest: str, words: str) -> None:
    model = transformer()
    with pytest.raises(InputError, match=words):
        apply(Quantize(type=type_, rest=rest), model, "tensorrt-rtx", [feeds_for(model)])
