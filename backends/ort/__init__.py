"""ONNX Runtime: on the CPU, on NVIDIA's GPUs, and the plain graph for runtimes that optimize it themselves."""

from __future__ import annotations

from sparsecc.targets import Target

_INTEGERS = frozenset({"int8", "int8-dynamic", "int8-weights", "int4"})
_HALVES = frozenset({"fp16", "bf16"})

TARGETS = (
    Target("onnx", "onnx", _INTEGERS | _HALVES, any_pattern=True),
    Target("onnxruntime", "onnxruntime", _INTEGERS | {"fp16"}, dialect="onnxruntime", timed_here=True),
    Target(
        "onnxruntime-arm64",
        "onnxruntime",
        _INTEGERS | {"fp16"},
        activation="int8",
        conv_multiple=8,
        dialect="onnxruntime",
        machines=frozenset({"aarch64", "arm64"}),
    ),
    Target("onnxruntime-cuda", "onnxruntime-cuda", _HALVES, conv_multiple=8, device="gpu"),
    Target(
        "onnxruntime-tensorrt", "onnxruntime-tensorrt", _HALVES | {"int8"}, activation="int8", device="gpu"
    ),
)
BACKENDS = {
    "onnx": "sparsecc.backends.ort.plain:PlainOnnx",
    "onnxruntime": "sparsecc.backends.ort.cpu:OnnxRuntimeCpu",
    "onnxruntime-cuda": "sparsecc.backends.ort.gpu:OnnxRuntimeCuda",
    "onnxruntime-tensorrt": "sparsecc.backends.ort.gpu:OnnxRuntimeTensorrt",
}
