"""Every graph lowered for TensorRT parses, types and builds in NVIDIA's own builder, without a GPU."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest

from sparsecc.passes.quantize import Quantize
from sparsecc.passes.sparsity import Sparsify
from tests.quantize_models import convolutions, feeds_for, transformer
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
    "int4": [Quantize(type="int4")],
    "fp16": [Quantize(type="fp16")],
    "bf16": [Quantize(type="bf16")],
    "2:4": [Sparsify()],
    "int8+fp16": [Quantize(type="int8"), Quantize(type="fp16")],
    "fp8+fp16": [Quantize(type="fp8"), Quantize(type="fp16")],
    "int4+fp16": [Quantize(type="int4"), Quantize(type="fp16")],
    "2:4+int8": [Sparsify(), Quantize(type="int8")],
    "2:4+fp16": [Sparsify(), Quantize(type="fp16")],
}


def build(path: Path, *, sparse: bool) -> int:
    """Bytes of the engine; fails with the parser's messages."""
    import tensorrt_rtx_bindings as loaded  # type: ignore[import-not-found,unused-ignore]

    trt: Any = loaded
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    parsed = parser.parse_from_file(str(path))
    errors = [
        f"{parser.get_error(i).node_name()}: {parser.get_error(i).desc()}" for i in range(parser.num_errors)
    ]
    assert parsed, errors
    config = builder.create_builder_config()
    if sparse and hasattr(trt.BuilderFlag, "SPARSE_WEIGHTS"):
        config.set_flag(trt.BuilderFlag.SPARSE_WEIGHTS)
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        shape = [1 if side < 0 else side for side in tensor.shape]
        profile.set_shape(tensor.name, shape, shape, shape)
    config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    assert engine is not None
    return int(engine.nbytes)


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


def test_the_onnxruntime_form_would_be_refused(tmp_path: Path) -> None:
    model = convolutions()
    apply(Quantize(type="int8"), model, "onnxruntime", [feeds_for(model)])
    ir.save(model, tmp_path / "model.onnx")
    with pytest.raises(AssertionError):
        build(tmp_path / "model.onnx", sparse=False)
