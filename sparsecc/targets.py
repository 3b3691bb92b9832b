"""Targets: a runtime with its device's abilities. Which types, patterns and channel counts it accelerates."""

from __future__ import annotations

from dataclasses import dataclass

from sparsecc.errors import unknown


@dataclass(frozen=True)
class Target:
    """A runtime on a kind of device.

    `backend` names the row of `sparsecc.backends.BACKENDS`. `types` are the values of `--quantize` and
    `patterns` those of `--sparsity` that it really accelerates. `activation` is the integer type its int8
    kernels want for activations. Channel counts are chosen as multiples of `conv_multiple` (groups of at
    least four times that), of `narrow_multiple` below, and of `gemm_multiple` where only matrix products use them.
    """

    name: str
    backend: str
    types: frozenset[str]
    patterns: frozenset[str] = frozenset()
    activation: str = "uint8"
    conv_multiple: int = 16
    narrow_multiple: int = 8
    gemm_multiple: int = 8
    device: str = "cpu"

    def multiple(self, size: int, *, feeds_conv: bool) -> int:
        """The step in which a group of `size` slots is cut so that kernels stay on their fast path."""
        wide = self.conv_multiple if feeds_conv else self.gemm_multiple
        for step in (wide, self.narrow_multiple, 4, 2):
            if step <= wide and size >= 4 * step:
                return step
        return 1


_FP = frozenset({"fp16", "bf16"})
TARGETS: dict[str, Target] = {
    t.name: t
    for t in (
        Target("onnx", "onnx", frozenset({"int8", "int8-dynamic", "int4"}) | _FP),
        Target("onnxruntime", "onnxruntime", frozenset({"int8", "int8-dynamic", "int4", "fp16"})),
        Target(
            "onnxruntime-arm64",
            "onnxruntime",
            frozenset({"int8", "int8-dynamic", "int4", "fp16"}),
            activation="int8",
            conv_multiple=8,
        ),
        Target("onnxruntime-cuda", "onnxruntime-cuda", _FP, conv_multiple=8, device="gpu"),
        Target(
            "onnxruntime-tensorrt", "onnxruntime-tensorrt", _FP | {"int8"}, activation="int8", device="gpu"
        ),
        Target(
            "tensorrt",
            "tensorrt",
            frozenset({"int8", "int4", "fp8"}) | _FP,
            frozenset({"2:4"}),
            activation="int8",
            conv_multiple=32,
            gemm_multiple=32,
            device="gpu",
        ),
        Target(
            "tensorrt-rtx",
            "tensorrt-rtx",
            frozenset({"int8", "int4", "fp8"}) | _FP,
            frozenset({"2:4"}),
            activation="int8",
            conv_multiple=32,
            gemm_multiple=32,
            device="gpu",
        ),
    )
}


def target_named(name: str) -> Target:
    """The target of that name. InputError names the closest one when there is none."""
    if name in TARGETS:
        return TARGETS[name]
    raise unknown("target", "targets", name, sorted(TARGETS))
