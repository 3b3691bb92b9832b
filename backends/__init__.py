"""The runtimes: one file or folder each, by name in `BACKENDS`, imported when first asked for."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, cast

from sparsecc.errors import InputError

if TYPE_CHECKING:
    from sparsecc.backends.base import Backend

BACKENDS: dict[str, str] = {
    "onnx": "sparsecc.backends.plain_onnx:PlainOnnx",
    "onnxruntime": "sparsecc.backends.onnxruntime_cpu:OnnxRuntimeCpu",
    "onnxruntime-cuda": "sparsecc.backends.onnxruntime_gpu:OnnxRuntimeCuda",
    "onnxruntime-tensorrt": "sparsecc.backends.onnxruntime_gpu:OnnxRuntimeTensorrt",
    "tensorrt": "sparsecc.backends.nvidia.engine:TensorrtEngine",
    "tensorrt-rtx": "sparsecc.backends.nvidia.rtx_engine:TensorrtRtx",
}
"""Name -> "module:Class". Third parties add theirs through the entry-point group `sparsecc.backends`."""

ENTRY_POINT_GROUP = "sparsecc.backends"


def backend_names() -> list[str]:
    """All backends by name, ours and those of installed packages."""
    return sorted({*BACKENDS, *(point.name for point in entry_points(group=ENTRY_POINT_GROUP))})


def backend_named(name: str) -> Backend:
    """An instance of the backend of that name. InputError when there is none, or it cannot be imported."""
    try:
        if name in BACKENDS:
            module, _, class_name = BACKENDS[name].partition(":")
            return cast("Backend", getattr(import_module(module), class_name)())
        for point in entry_points(group=ENTRY_POINT_GROUP, name=name):
            return cast("Backend", point.load()())
    except (ImportError, AttributeError) as e:
        raise InputError(f"backend '{name}' cannot be imported: {e}: run 'sparsecc doctor'") from e
    raise InputError(f"unknown backend '{name}': backends are {', '.join(backend_names())}")
