"""Run a plan: buffers and events of the CUDA driver, CUDA graph on or off, raw times, times per layer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from sparsecc.backends.nvidia.api import Flavour, Log, load, logger_into
from sparsecc.backends.nvidia.cuda_runtime import Cuda
from sparsecc.backends.nvidia.layer_types import Api, ICudaEngine, IExecutionContext
from sparsecc.backends.nvidia.plans import read_vouched
from sparsecc.errors import InputError
from sparsecc.escaping import quoted
from sparsecc.runtime.runner import Feeds, LayerTime

TYPES: dict[str, Any] = {
    "FLOAT": np.float32,
    "HALF": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "FP8": ml_dtypes.float8_e4m3fn,
    "INT64": np.int64,
    "INT32": np.int32,
    "INT8": np.int8,
    "UINT8": np.uint8,
    "BOOL": np.bool_,
}
"""TensorRT's DataType -> numpy's, for inputs and outputs."""


class EngineRunner:
    """A plan loaded on a GPU. It keeps one buffer per input and output and grows it when shapes grow."""

    def __init__(self, api: Api, engine: ICudaEngine, cuda: Cuda, where: str) -> None:
        context = engine.create_execution_context()
        if context is None:
            raise InputError(
                f"{where}: TensorRT makes no execution context: free GPU memory, or build it again"
            )
        self._api, self._engine, self._cuda, self._where = api, engine, cuda, where
        self._context: IExecutionContext = context
        self._buffers: dict[str, tuple[int, int]] = {}
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        self.inputs = [n for n in names if engine.get_tensor_mode(n) == api.TensorIOMode.INPUT]
        self.outputs = [n for n in names if engine.get_tensor_mode(n) == api.TensorIOMode.OUTPUT]

    def run(self, feeds: Feeds) -> dict[str, np.ndarray]:
        """Output name -> array. InputError when the feeds do not fit."""
        results = self._bind(feeds)
        self._enqueue()
        self._cuda.wait()
        for name, array in results.items():
            self._cuda.download(array, self._buffers[name][0])
        return results

    def times(self, feeds: Feeds, *, runs: int, warmup: int = 10, graph: bool = False) -> list[float]:
        """Raw milliseconds of `runs` runs, by CUDA events, inputs already on the device."""
        step = self.step(feeds, graph=graph)
        for _ in range(warmup):
            step()
        self._cuda.wait()
        return [self._cuda.milliseconds(step) for _ in range(runs)]

    def step(self, feeds: Feeds, *, graph: bool = False) -> Callable[[], None]:
        """A call that puts one run on the stream, for interleaved timing with `milliseconds`."""
        self._bind(feeds)
        self._enqueue()
        self._cuda.wait()
        return self._cuda.captured(self._enqueue) if graph else self._enqueue

    def milliseconds(self, step: Callable[[], None]) -> float:
        """The time of one `step`, by CUDA events."""
        return self._cuda.milliseconds(step)

    def layers(self, feeds: Feeds, *, runs: int) -> list[LayerTime]:
        """Mean time per layer and run. The profiler serialises layers, so their sum exceeds the latency."""
        self._bind(feeds)
        totals: dict[str, float] = {}
        self._context.profiler = _profiler(self._api, totals)
        self._context.enqueue_emits_profile = False
        for _ in range(runs):
            self._enqueue()
            self._cuda.wait()
            self._context.report_to_profiler()
        return [LayerTime(name, "", 1000 * total / runs, "TensorRT") for name, total in totals.items()]

    def layer_information(self) -> str:
        """The inspector's JSON."""
        inspector = self._engine.create_engine_inspector()
        inspector.execution_context = self._context
        return inspector.get_engine_information(self._api.LayerInformationFormat.JSON)

    def close(self) -> None:
        """Give back the GPU's memory."""
        self._cuda.close()

    def _bind(self, feeds: Feeds) -> dict[str, np.ndarray]:
        missing = [name for name in self.inputs if name not in feeds]
        if missing:
            raise InputError(
                f"{self._where}: input {quoted(missing[0])} is missing: give it with --input or --data"
            )
        for name in self.inputs:
            array = np.ascontiguousarray(feeds[name], dtype=self._type(name))
            if not self._context.set_input_shape(name, tuple(array.shape)):
                raise InputError(
                    f"{self._where}: input {quoted(name)} of shape {list(array.shape)} is outside the shapes "
                    "it was built for: build with --input name:min|opt|max"
                )
            self._cuda.upload(self._place(name, array.nbytes), array)
        return {name: self._result(name) for name in self.outputs}

    def _result(self, name: str) -> np.ndarray:
        shape = tuple(self._context.get_tensor_shape(name))
        if any(size < 0 for size in shape):
            raise InputError(
                f"{self._where}: the shape of output {quoted(name)} depends on the data: keep its node out"
            )
        array = np.empty(shape, dtype=self._type(name))
        self._place(name, array.nbytes)
        return array

    def _type(self, name: str) -> Any:
        word = self._engine.get_tensor_dtype(name).name
        if word not in TYPES:
            raise InputError(
                f"{self._where}: {quoted(name)} has type {word}, which numpy lacks: add a Cast to it"
            )
        return TYPES[word]

    def _place(self, name: str, size: int) -> int:
        address, room = self._buffers.get(name, (0, -1))
        if room < size:
            if room >= 0:
                self._cuda.free(address)
            address = self._cuda.allocate(size)
            self._buffers[name] = (address, size)
        self._context.set_tensor_address(name, address)
        return address

    def _enqueue(self) -> None:
        if not self._context.execute_async_v3(self._cuda.stream):
            raise InputError(
                f"{self._where}: TensorRT does not run it on these inputs: check their shapes and types"
            )


def open_plan(flavour: Flavour, path: Path) -> EngineRunner:
    """Load a plan that `read_vouched` lets pass, the only way to one; a stripped one is refitted from `model.onnx`."""
    plan, where = read_vouched(path), path.name
    api, log = load(flavour), Log()
    cuda = Cuda()
    logger = logger_into(api, log)
    engine = api.Runtime(logger).deserialize_cuda_engine(plan)
    if engine is None:
        cuda.close()
        raise InputError(
            f"{where}: {flavour.title} {api.__version__} does not load it on this GPU: build it here again "
            "(plans belong to one version and one GPU model)"
        )
    _refit(api, engine, logger, path.with_name("model.onnx"))
    return EngineRunner(api, engine, cuda, where)


def _refit(api: Api, engine: ICudaEngine, logger: object, weights: Path) -> None:
    if not engine.refittable:
        return
    refitter = api.Refitter(engine, logger)
    if not refitter.get_missing_weights():
        return
    parser = api.OnnxParserRefitter(refitter, logger)
    if not parser.refit_from_file(str(weights)) or not refitter.refit_cuda_engine():
        raise InputError(
            f"{quoted(weights.name)} does not refit the stripped plan: take the one it was built from"
        )


def _profiler(api: Api, totals: dict[str, float]) -> object:
    base = api.IProfiler

    class Profiler(base):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            base.__init__(self)

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            totals[layer_name] = totals.get(layer_name, 0.0) + ms

    return Profiler()
