"""The one door to ONNX Runtime: sessions with their settings, failures in one line, and the runner over them.

Whatever runs a model here comes through `open_session`; `sparsecc/devices/runner.py`, which is copied alone to
boards, is the one exception.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import onnx
import onnx_ir as ir

from sparsecc.errors import InputError, MissingPackageError, RuntimeRefusalError
from sparsecc.ir.apart import FED, Apart, large, outline
from sparsecc.runtime import custom_ops
from sparsecc.runtime.reasons import plain_reason
from sparsecc.runtime.runner import Feeds
from sparsecc.system.memory import weight_bytes
from sparsecc.system.runtime_packages import unloadable
from sparsecc.system.temp_folders import temporary_folder

try:
    import onnxruntime as ort
    from onnxruntime.capi import onnxruntime_pybind11_state as _state

    VERSION: str = ort.__version__
except (ImportError, AttributeError) as e:  # of two packages of it that were installed, one is gone
    raise MissingPackageError(unloadable(e)) from e

Source = Path | bytes | onnx.ModelProto | ir.Model
"""What a session is made of: a file, the bytes of one, a model in memory."""

LEVELS: dict[str, ort.GraphOptimizationLevel] = {
    "none": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
CPU = ("CPUExecutionProvider",)
_FATAL_ONLY = 4
_INLINE = 1 << 30
"""Bytes of a model in memory that is handed over as one message; larger ones go by way of a file."""
_BESIDE = 1024
"""Bytes of a weight that is written beside an optimized graph, where weights are."""

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

T = TypeVar("T")


def available_providers() -> list[str]:
    """The execution providers that this build of ONNX Runtime has."""
    return list(ort.get_available_providers())


def open_session(
    source: Source,
    *,
    where: str = "",
    threads: int = 1,
    level: str = "all",
    arena: bool = True,
    optimized: Path | None = None,
    weights_beside: bool = False,
    trace: Path | None = None,
    providers: Sequence[Any] = CPU,
    entries: Mapping[str, str] | None = None,
    advice: str = "",
    rounds: bool = False,
) -> OrtRunner:
    """A model loaded by ONNX Runtime. InputError when it refuses the model; `where` names it there, `advice` says
    what to do instead.

    Sequential, no spinning, `threads` intra-op threads, graph optimization up to `level` (a key of LEVELS). Without
    `arena` memory is given back after every run. `optimized` is where the graph as it really runs is written,
    its weights in `NAME.data` where they are to lie beside it; `trace` the beginning of the name of the trace that
    `OrtRunner.traced` reads. `entries` are further session configuration entries.

    On the CPU, which has few kernels in bfloat16, a model in it runs emulated: see `sparsecc.runtime.emulated`; with
    `rounds` one in fp16 does too, for a device whose kernels compute in it.
    """
    options = _options(threads, level, entries or {})
    if not arena:
        options.enable_cpu_mem_arena = options.enable_mem_pattern = False
    if optimized is not None:
        _write_optimized(options, optimized, weights_beside=weights_beside)
    if trace is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(trace)
    where = where or (source.name if isinstance(source, Path) else "model")
    if isinstance(source, Path) and not source.is_file():
        raise InputError(f"{source}: no such file: check the path")
    try:
        rounded = _emulated(source) if rounds else None
        session = _session(rounded or source, options, providers)
    except RuntimeFailure as e:
        if optimized is not None and _UNWRITTEN in str(e):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(optimized)) from e
        raise RuntimeRefusalError(
            f"{where}: ONNX Runtime {VERSION} refuses it: {plain_reason(e)}: {advice or _next_step(e)}"
        ) from e
    return OrtRunner(session, where)


def open_graph(graph: ir.Model | Apart, *, threads: int = 1) -> OrtRunner:
    """A graph as it stands now (level "none"), without a file: its large weights are fed to every run, and one may be
    given in `feeds` like an input. Memory is given back after every run.

    InputError when ONNX Runtime refuses it, where weights are constants too.
    """
    apart = graph if isinstance(graph, Apart) else Apart.of(graph)
    options = _options(threads, "none", {})
    options.enable_cpu_mem_arena = options.enable_mem_pattern = False
    if apart.outputs == 1 and any(t.dtype == ir.DataType.FLOAT16 for t in apart.weights.values()):
        # else most halves are cast before one is used; where there are many outputs, it is the other way round
        options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
    try:
        session = _made(apart.graph, options, CPU)
    except RuntimeFailure:
        return open_session(apart.model(), threads=threads, level="none")
    return OrtRunner(session, "model", apart.weights)


def optimize(model: ir.Model, path: Path, level: str) -> Path:
    """Write what ONNX Runtime makes of a graph at a level to `path`, the weights to PATH.data.

    InputError when it refuses the graph.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor for name, tensor in large(model).items() if tensor.dtype in FED}
    options = _options(
        1, level, {"session.disable_prepacking": "1"}
    )  # nothing is run: no second form of weights
    _write_optimized(options, path, weights_beside=True)
    arrays = [np.asarray(tensor.numpy(), order="C") for tensor in weights.values()]
    options.add_external_initializers(list(weights), [ort.OrtValue.ortvalue_from_numpy(a) for a in arrays])
    try:
        _made(outline(model, weights).SerializeToString(), options, CPU)
    except RuntimeFailure:
        open_session(model, level=level, optimized=path, weights_beside=True)
    return path


_UNWRITTEN = "Failed to write external initializers"
"""What ONNX Runtime says where the disk takes no more of them; it tells no reason."""


def _write_optimized(options: ort.SessionOptions, path: Path, *, weights_beside: bool) -> None:
    options.optimized_model_filepath = str(path)
    if weights_beside:
        beside = "session.optimized_model_external_initializers_"
        options.add_session_config_entry(f"{beside}file_name", f"{path.name}.data")
        options.add_session_config_entry(f"{beside}min_size_in_bytes", str(_BESIDE))


def _options(threads: int, level: str, entries: Mapping[str, str]) -> ort.SessionOptions:
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
    for key, value in entries.items():
        options.add_session_config_entry(key, value)
    custom_ops.register(options)
    return options


def _session(source: Source, options: ort.SessionOptions, providers: Sequence[Any]) -> ort.InferenceSession:
    """As it is, or where the CPU lacks a kernel and the model is in bfloat16 or small floats in blocks, emulated."""
    try:
        return _made(source, options, providers)
    except RuntimeFailure as e:
        lacks_kernel = isinstance(e, _state.NotImplemented) or "TRT_" in str(e)
        if not lacks_kernel or tuple(providers) != CPU:
            raise
        if (wide := _emulated(source)) is None:
            raise
        return _made(wide, options, providers)


def _emulated(source: Source) -> ir.Model | None:
    """A model with each value rounded to its 16 bits, in float32 between; None where it has none, or is bytes."""
    from sparsecc.runtime.emulated import emulated

    return None if isinstance(source, bytes) else emulated(_graph_of(source))


def _made(source: Source, options: ort.SessionOptions, providers: Sequence[Any]) -> ort.InferenceSession:
    """Large models by way of a file, since they exceed what one message holds."""
    if isinstance(source, Path | bytes):
        given = str(source) if isinstance(source, Path) else source
        return ort.InferenceSession(given, sess_options=options, providers=list(providers))
    if isinstance(source, onnx.ModelProto) and not source.graph.initializer:  # a piece, whose weights are fed
        return _made(source.SerializeToString(), options, providers)
    model = source if isinstance(source, ir.Model) else ir.from_proto(source)
    if weight_bytes(model) < _INLINE:
        proto = source if isinstance(source, onnx.ModelProto) else ir.to_proto(source)
        return _made(proto.SerializeToString(), options, providers)
    with temporary_folder("scratch") as folder:
        path = Path(folder) / "model.onnx"
        ir.save(model, path, external_data="model.onnx.data")
        return _made(path, options, providers)


def _graph_of(source: Path | onnx.ModelProto | ir.Model) -> ir.Model:
    """The model to change: the caller's own stays as it is."""
    if isinstance(source, ir.Model):
        return source.clone()
    return ir.load(source) if isinstance(source, Path) else ir.from_proto(source)


def _next_step(error: Exception) -> str:
    if isinstance(error, _state.NotImplemented) or "is not a registered function/op" in str(error):
        return (
            "export it with operators this runtime has, give the library of your own with --custom-ops, or use "
            "another target"
        )
    if "model IR version" in str(error) or "official released" in str(error):
        return "it is newer than this onnxruntime: install a newer one, or export with an older opset"
    if isinstance(error, _state.InvalidProtobuf):
        return "the file is damaged or no ONNX model; export it again"
    return "check the model with onnx.checker and export it again"


class OrtRunner:
    """A model loaded by `open_session`; `weights` are fed with every run."""

    def __init__(
        self,
        session: ort.InferenceSession,
        where: str,
        weights: Mapping[str, ir.TensorProtocol] | None = None,
    ) -> None:
        self._session = session
        self._where = where
        self._weights = weights or {}
        self._outputs = [value.name for value in session.get_outputs()]
        self._types = {value.name: value.type for value in session.get_inputs()}

    def run(
        self, feeds: Feeds, seconds: float | None = None, names: Collection[str] | None = None
    ) -> dict[str, np.ndarray]:
        """Output name -> array, of all outputs or of `names`; sequences and maps come as ONNX Runtime's lists.
        InputError when it fails or takes longer than `seconds`."""
        options = ort.RunOptions() if seconds is not None else None
        if self._weights:
            apart = {n: np.asarray(t.numpy(), order="C") for n, t in self._weights.items() if n not in feeds}
            feeds = {**apart, **feeds}
        with _ended_after(seconds, options):
            wanted = [name for name in self._outputs if names is None or name in names]
            return self._guarded(
                lambda: dict(zip(wanted, self._results(feeds, options, wanted), strict=True))
            )

    def prepared(self, feeds: Feeds) -> Callable[[], object]:
        """A call that runs these feeds again and again with the least overhead, for timing."""
        ready = dict(feeds)
        self.run(ready)
        if self._has_foreign(ready):
            values = self._values(ready)
            return lambda: self._session.run_with_ort_values(None, values)
        return lambda: self._session.run(None, ready)

    @property
    def providers(self) -> list[str]:
        """The execution providers that the session really has."""
        return list(self._session.get_providers())

    def traced(self) -> list[dict[str, Any]]:
        """Events of a session opened with `trace`, which ends with this (a Chrome trace, `dur` in microseconds)."""
        events: list[dict[str, Any]] = json.loads(Path(self._session.end_profiling()).read_text("utf-8"))
        return events

    def _results(self, feeds: Feeds, options: ort.RunOptions | None, wanted: list[str]) -> list[Any]:
        foreign = any(value.type[7:-1] in _FOREIGN for value in self._session.get_outputs())
        if not (foreign or self._has_foreign(feeds)):
            return list(self._session.run(wanted, dict(feeds), options))
        values = self._session.run_with_ort_values(wanted, self._values(feeds), options)
        return [_to_numpy(value) for value in values]

    def _has_foreign(self, feeds: Feeds) -> bool:
        return any(self._types.get(name, "")[7:-1] in _FOREIGN for name in feeds)

    def _values(self, feeds: Feeds) -> dict[str, ort.OrtValue]:
        return {name: _to_value(np.asarray(array, order="C")) for name, array in feeds.items()}

    def _guarded(self, call: Callable[[], T]) -> T:
        try:
            return call()
        except RuntimeFailure as e:
            raise RuntimeRefusalError(
                f"{self._where}: ONNX Runtime cannot run it on these inputs: {plain_reason(e)}: "
                "give sizes that it runs at with --input, or samples of yours"
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
