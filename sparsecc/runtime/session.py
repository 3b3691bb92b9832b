"""Sessions of ONNX Runtime on the CPU: their settings, failures in one line, and the runner over them."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as _state

from sparsecc.backends.base import Feeds
from sparsecc.errors import InputError
from sparsecc.system.temp_folders import temporary_folder

LEVELS: dict[str, ort.GraphOptimizationLevel] = {
    "none": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
PROVIDERS = ["CPUExecutionProvider"]
_FATAL_ONLY = 4

_OWN_ERRORS = (
    "Fail EPFail EngineError InvalidArgument InvalidGraph InvalidProtobuf ModelRequiresCompilation NoModel "
    "NoSuchFile NotImplemented RuntimeException"
)
RuntimeFailure: tuple[type[Exception], ...] = (
    *(getattr(_state, name) for name in _OWN_ERRORS.split() if hasattr(_state, name)),
    ValueError,
    RuntimeError,
    TypeError,
)
"""What ONNX Runtime's Python API raises when it refuses a model or its inputs."""

_NOISE = (
    (re.compile(r"\[ONNXRuntimeError\] : -?\d+ : [A-Z_]+ : "), ""),
    (re.compile(r"Load model from .*? failed: ?"), ""),
    (re.compile(r"(?:/[^\s:]*/)?\b\w+\.(?:cc|cpp|h|hpp):\d+ (?:\w+ (?=[\w\[]))?"), " "),
    (
        re.compile(
            r"(?:[\w:<>,&*~]+ )?onnxruntime::[\w:<>~]+\(.*?\)(?: const)?(?: \[with .*?\])? (?=[A-Z\[(])"
        ),
        "",
    ),
    (re.compile(r"\[ShapeInferenceError\] ?"), ""),
    (re.compile(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]+"), " "),
    (re.compile(r" {2,}"), " "),
)
_LONGEST = 400

T = TypeVar("T")


def plain_reason(error: Exception) -> str:
    """The fact in a message of ONNX Runtime: one line without codes, source positions, control characters."""
    text = str(error)
    for pattern, replacement in _NOISE:
        text = pattern.sub(replacement, text)
    text = text.strip(" .:")
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def session_options(
    *, threads: int, level: str, settings: Mapping[str, str] | None = None
) -> ort.SessionOptions:
    """The settings of every measurement: sequential, no spinning, `threads` intra-op threads."""
    if level not in LEVELS:
        raise InputError(f"unknown optimization level '{level}': levels are {', '.join(LEVELS)}")
    if threads < 1:
        raise InputError(
            f"threads must be at least 1, not {threads}: give the number of physical cores to use"
        )
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = LEVELS[level]
    options.log_severity_level = _FATAL_ONLY
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    for key, value in (settings or {}).items():
        options.add_session_config_entry(key, value)
    return options


def open_session(source: Path | bytes, options: ort.SessionOptions) -> ort.InferenceSession:
    """A session on a file or on the bytes of one. InputError when ONNX Runtime refuses the model.

    A file in bfloat16, for which the CPU has few kernels, runs emulated: see `sparsecc.runtime.bfloat16`.
    """
    where = source.name if isinstance(source, Path) else "model"
    if isinstance(source, Path) and not source.is_file():
        raise InputError(f"{source}: no such file: check the path")
    try:
        return _session(source, options)
    except RuntimeFailure as e:
        if isinstance(e, _state.NotImplemented) and isinstance(source, Path):
            from sparsecc.runtime.bfloat16 import emulated

            if (twin := emulated(source)) is not None:
                return _session_on(twin, options)
        reason = plain_reason(e)
        raise InputError(
            f"{where}: ONNX Runtime {ort.__version__} refuses it: {reason}: {_next_step(e)}"
        ) from e


def _session(source: Path | bytes, options: ort.SessionOptions) -> ort.InferenceSession:
    model = str(source) if isinstance(source, Path) else source
    return ort.InferenceSession(model, sess_options=options, providers=PROVIDERS)


def _session_on(model: ir.Model, options: ort.SessionOptions) -> ort.InferenceSession:
    """By way of a file, since weights may exceed what one message holds."""
    with temporary_folder("scratch") as folder:
        path = Path(folder) / "model.onnx"
        ir.save(model, path, external_data="model.onnx.data")
        return _session(path, options)


def _next_step(error: Exception) -> str:
    if isinstance(error, _state.NotImplemented) or "is not a registered function/op" in str(error):
        return "export it with operators this runtime has, or use another target"
    if "model IR version" in str(error) or "official released" in str(error):
        return "it is newer than this onnxruntime: install a newer one, or export with an older opset"
    if isinstance(error, _state.InvalidProtobuf):
        return "the file is damaged or no ONNX model; export it again"
    return "check the model with onnx.checker and export it again"


class OrtRunner:
    """A loaded model. `session` is ONNX Runtime's own, for profiling."""

    def __init__(self, session: ort.InferenceSession, where: str) -> None:
        self.session = session
        self._where = where
        self._outputs = [value.name for value in session.get_outputs()]
        self._types = {value.name: value.type for value in session.get_inputs()}

    def run(self, feeds: Feeds, seconds: float | None = None) -> dict[str, np.ndarray]:
        """Output name -> array; sequences and maps come as ONNX Runtime's lists. InputError when it fails or
        takes longer than `seconds`."""
        options = ort.RunOptions() if seconds is not None else None
        with _ended_after(seconds, options):
            return self._guarded(lambda: dict(zip(self._outputs, self._results(feeds, options), strict=True)))

    def prepared(self, feeds: Feeds) -> Callable[[], object]:
        """A call that runs these feeds again and again with the least overhead, for timing."""
        ready = dict(feeds)
        self.run(ready)
        if self._has_foreign(ready):
            values = self._values(ready)
            return lambda: self.session.run_with_ort_values(None, values)
        return lambda: self.session.run(None, ready)

    def _results(self, feeds: Feeds, options: ort.RunOptions | None = None) -> list[Any]:
        foreign = any(value.type[7:-1] in _FOREIGN for value in self.session.get_outputs())
        if not (foreign or self._has_foreign(feeds)):
            return list(self.session.run(None, dict(feeds), options))
        values = self.session.run_with_ort_values(None, self._values(feeds), options)
        return [_to_numpy(value) for value in values]

    def _has_foreign(self, feeds: Feeds) -> bool:
        return any(self._types.get(name, "")[7:-1] in _FOREIGN for name in feeds)

    def _values(self, feeds: Feeds) -> dict[str, ort.OrtValue]:
        return {name: _to_value(np.ascontiguousarray(array)) for name, array in feeds.items()}

    def _guarded(self, call: Callable[[], T]) -> T:
        try:
            return call()
        except RuntimeFailure as e:
            raise InputError(
                f"{self._where}: ONNX Runtime cannot run it on these inputs: {plain_reason(e)}: "
                "give inputs of the right kind with --input or --data"
            ) from e


@contextmanager
def _ended_after(seconds: float | None, options: ort.RunOptions | None) -> Iterator[None]:
    """ONNX Runtime looks at the flag between two nodes and gives the run up."""
    if seconds is None or options is None:
        yield
        return
    timer = threading.Timer(seconds, lambda: setattr(options, "terminate", True))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _to_value(array: np.ndarray) -> ort.OrtValue:
    """An OrtValue; types that numpy does not know are handed over as their bits, and named."""
    if _is_plain(array.dtype):
        return ort.OrtValue.ortvalue_from_numpy(array)
    import onnx_ir as ir

    kind = ir.DataType.from_numpy(array.dtype)
    if kind.bitwidth >= 8:
        bits = array.view(np.uint16 if kind.bitwidth == 16 else np.uint8)
    else:  # packed into the first bytes of an array of the same shape
        packed = np.frombuffer(ir.Tensor(array).tobytes(), np.uint8)
        bits = np.zeros(array.shape, np.uint8)
        bits.reshape(-1)[: packed.size] = packed
    return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, kind.value)


def _to_numpy(value: ort.OrtValue) -> np.ndarray:
    """The array of an OrtValue."""
    name = value.data_type().removeprefix("tensor(").removesuffix(")")
    if name not in _FOREIGN:
        return np.asarray(value.numpy())
    import ctypes

    import onnx_ir as ir

    kind, shape = ir.DataType[name.upper()], value.shape()
    count = int(np.prod(shape, dtype=np.int64))
    data = np.frombuffer(ctypes.string_at(value.data_ptr(), -(-count * kind.bitwidth // 8)), np.uint8)
    if kind.bitwidth < 8:
        return np.asarray(ir.PackedTensor(data, kind, shape=ir.Shape(shape)).numpy())
    array: np.ndarray = data.view(kind.numpy()).reshape(shape)
    return array


def _is_plain(dtype: np.dtype[Any]) -> bool:
    """Whether the type is numpy's own."""
    return dtype.isbuiltin == 1 or dtype.kind in "OSU"


_FOREIGN = frozenset(
    {"bfloat16", "float8e4m3fn", "float8e4m3fnuz", "float8e5m2", "float8e5m2fnuz", "float8e8m0"}
    | {"int4", "uint4", "int2", "uint2", "float4e2m1"}
)
"""Names of ONNX Runtime's element types that numpy does not know."""
