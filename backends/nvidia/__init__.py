"""NVIDIA TensorRT and TensorRT for RTX: building engines, timing them, saying what they run."""

from __future__ import annotations

from sparsecc.targets import Target

_TYPES = frozenset({"int8", "int4", "fp8", "fp16", "bf16"})

TARGETS = (
    Target(
        "tensorrt",
        "tensorrt",
        _TYPES,
        frozenset({"2:4"}),
        activation="int8",
        conv_multiple=32,
        gemm_multiple=32,
        device="gpu",
        dialect="tensorrt",
    ),
    Target(
        "tensorrt-rtx",
        "tensorrt-rtx",
        _TYPES,
        frozenset({"2:4"}),
        activation="int8",
        conv_multiple=32,
        gemm_multiple=32,
        device="gpu",
        dialect="tensorrt",
        no_kernel={("bf16", "ConvTranspose"): "TensorRT-RTX has no bf16 kernel for ConvTranspose"},
    ),
)
BACKENDS = {
    "tensorrt": "sparsecc.backends.nvidia.engine:TensorrtEngine",
    "tensorrt-rtx": "sparsecc.backends.nvidia.rtx_engine:TensorrtRtx",
}
