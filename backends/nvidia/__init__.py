"""NVIDIA TensorRT and TensorRT for RTX: building engines, timing them, saying what they run."""

from __future__ import annotations

from dataclasses import replace

from sparsecc.targets import Target

_TYPES = frozenset({"int8", "int8-weights", "int4", "fp8", "nvfp4", "mxfp8", "fp16", "bf16"})
_FLOAT_OR_HALF = "GRU HardSwish Mish LpNormalization MeanVarianceNormalization LpPool GlobalLpPool".split()
_NO_KERNEL = {
    ("bf16", operator): f"TensorRT's parser takes no {operator} in bf16" for operator in _FLOAT_OR_HALF
}
"""Found by building each operator of ONNX that has a bf16 form (tests/test_quantize_rtx.py)."""

_TENSORRT = Target(
    "tensorrt",
    "tensorrt",
    _TYPES,
    frozenset({"2:4"}),
    activation="int8",
    conv_multiple=32,
    gemm_multiple=32,
    device="gpu",
    dialect="tensorrt",
    no_kernel=_NO_KERNEL,
)
_RTX_LACKS = {("bf16", "ConvTranspose"): "TensorRT-RTX has no bf16 kernel for ConvTranspose"}
TARGETS = (
    _TENSORRT,
    replace(_TENSORRT, name="tensorrt-rtx", backend="tensorrt-rtx", no_kernel={**_NO_KERNEL, **_RTX_LACKS}),
)
BACKENDS = {
    "tensorrt": "sparsecc.backends.nvidia.engine:TensorrtEngine",
    "tensorrt-rtx": "sparsecc.backends.nvidia.rtx_engine:TensorrtRtx",
}
