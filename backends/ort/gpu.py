"""ONNX Runtime on NVIDIA GPUs: the backends `onnxruntime-cuda` and `onnxruntime-tensorrt`.

A provider that cannot take the whole model is refused: by default nothing falls back to the CPU unseen.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from sparsecc.backends.base import Artefact, Availability, Backend
from sparsecc.backends.nvidia.cache import keep_only_own, private_folder, sign_all
from sparsecc.backends.nvidia.device import NoGpuError, gpus
from sparsecc.backends.nvidia.plans import is_vouched, vouch
from sparsecc.errors import InputError, UnavailableError
from sparsecc.escaping import quoted
from sparsecc.runtime.runner import Feeds, LayerTime, Progress
from sparsecc.runtime.session import VERSION, OrtRunner, available_providers, open_session
from sparsecc.system.temp_folders import temporary_folder

CUDA, TENSORRT, CPU = "CUDAExecutionProvider", "TensorrtExecutionProvider", "CPUExecutionProvider"
OPTIONS = {
    "allow_fallback": "let nodes that the GPU lacks run on the CPU",
    "cuda_graph": "replay runs as a CUDA graph (fixed shapes only)",
    "tf32": "let fp32 convolutions and products use TF32",
    "engine_cache": "keep TensorRT's engines in a private cache between sessions",
    "context_model": "write the built engine into an EP-context model beside model.onnx",
    "workspace": "bytes of scratch memory for TensorRT",
}
_DEFAULTS: dict[str, Any] = {
    "allow_fallback": False,
    "cuda_graph": False,
    "tf32": True,
    "engine_cache": True,
    "context_model": False,
    "workspace": 0,
}
_MODEL, _CONTEXT, _SETTINGS = "model.onnx", "model_ctx.onnx", "session.json"


class OnnxRuntimeCuda(Backend):
    """ONNX Runtime with the CUDA provider. The options are the keys of `OPTIONS`."""

    name: ClassVar[str] = "onnxruntime-cuda"
    provider: ClassVar[str] = CUDA

    def availability(self) -> Availability:
        """Whether this build of ONNX Runtime has the provider, and a GPU answers."""
        if self.provider not in available_providers():
            reason = f"this onnxruntime has no {self.provider}"
            return Availability(
                False, VERSION, reason, "pip uninstall -y onnxruntime && pip install onnxruntime-gpu"
            )
        try:
            gpus()
        except NoGpuError as e:
            return Availability(False, VERSION, str(e), "use --target onnxruntime")
        return Availability(True, VERSION)

    def require(self, options: Mapping[str, Any]) -> None:
        checked(options)
        self._require()

    def build(
        self, model: ir.Model, folder: Path, options: Mapping[str, Any], progress: Progress
    ) -> Artefact:
        """Write `model.onnx` and its session settings, and open it once on the GPU.

        InputError when the provider does not take every node (unless `allow_fallback`), UnavailableError when
        it is not here.
        """
        settings = checked(options)
        self._require()
        path = folder / _MODEL
        ir.save(model, path)
        (folder / _SETTINGS).write_text(
            json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8"
        )
        progress("opening the model on the GPU", 0.5)
        self._session(path, settings)
        files = [_MODEL, _SETTINGS]
        if (folder / _CONTEXT).is_file():
            files += [_CONTEXT, vouch(folder / _CONTEXT)]
        return Artefact(_MODEL, tuple(files), {"provider": self.provider, "settings": settings})

    def load(self, path: Path, *, threads: int = 1) -> OrtRunner:
        """A session on the GPU with the settings that stand beside the model."""
        self._require()
        return self._session(path, read_settings(path), threads)

    def census(self, path: Path) -> dict[str, Any]:
        """Nodes by provider and operator, from one profiled run on zeros of the model's own shapes."""
        self._require()
        session_feeds = zeros_for(path)
        times = self.profile(path, session_feeds, runs=1)
        return {
            "by_provider": dict(sorted(Counter(t.provider for t in times).items())),
            "by_operator": dict(sorted(Counter(t.op_type for t in times).items())),
        }

    def profile(self, path: Path, feeds: Feeds, *, threads: int = 1, runs: int = 20) -> Sequence[LayerTime]:
        """Mean time per node from ONNX Runtime's own trace. For GPU nodes it is the time to launch them."""
        self._require()
        with temporary_folder("scratch") as folder:
            runner = self._session(path, read_settings(path), threads, trace=Path(folder) / "trace")
            for _ in range(runs):
                runner.run(feeds)
            return node_times(runner.traced(), runs)

    def provider_options(self, settings: Mapping[str, Any]) -> dict[str, str]:
        """The CUDA provider's options as its text keys and values."""
        return {
            "use_tf32": str(int(settings["tf32"])),
            "enable_cuda_graph": str(int(settings["cuda_graph"])),
            "cudnn_conv_algo_search": "EXHAUSTIVE",
        }

    def session_entries(self, path: Path, settings: Mapping[str, Any]) -> dict[str, str]:
        """Session configuration entries: above all that nothing falls back unless asked."""
        entries = {} if settings["allow_fallback"] else {"session.disable_cpu_ep_fallback": "1"}
        if settings["context_model"] and not path.with_name(_CONTEXT).exists():
            entries |= {"ep.context_enable": "1", "ep.context_file_path": str(path.with_name(_CONTEXT))}
        return entries

    def _session(
        self, path: Path, settings: Mapping[str, Any], threads: int = 1, trace: Path | None = None
    ) -> OrtRunner:
        providers: list[Any] = [(self.provider, self.provider_options(settings))]
        if settings["allow_fallback"] and self.provider != CPU:
            providers.append(CPU)
        context = path.with_name(_CONTEXT)
        runner = open_session(
            context if is_vouched(context) else path,
            where=f"{path.name} on {self.provider}",
            threads=threads,
            trace=trace,
            providers=providers,
            entries=self.session_entries(path, settings),
            advice="set allow_fallback, or use another target",
        )
        self.sign_engines(settings)
        if self.provider not in runner.providers:
            raise UnavailableError(
                f"{self.name}: {self.provider} does not start: check its CUDA and cuDNN libraries"
            )
        return runner

    def sign_engines(self, settings: Mapping[str, Any]) -> None:
        """Let the next session load what this one has built; the CUDA provider builds nothing."""

    def _require(self) -> None:
        found = self.availability()
        if not found.ok:
            raise UnavailableError(f"{self.name}: {found.reason}: {found.remedy}")


class OnnxRuntimeTensorrt(OnnxRuntimeCuda):
    """ONNX Runtime with the TensorRT provider, which needs TensorRT 10 beside it."""

    name: ClassVar[str] = "onnxruntime-tensorrt"
    provider: ClassVar[str] = TENSORRT

    def provider_options(self, settings: Mapping[str, Any]) -> dict[str, str]:
        """The TensorRT provider's options; engines and timings go to a private folder."""
        options = {"trt_cuda_graph_enable": str(bool(settings["cuda_graph"]))}
        if settings["workspace"]:
            options["trt_max_workspace_size"] = str(settings["workspace"])
        if settings["engine_cache"]:
            cache = str(_engine_folder())
            options |= {
                "trt_engine_cache_enable": "True",
                "trt_engine_cache_path": cache,
                "trt_timing_cache_enable": "True",
                "trt_timing_cache_path": cache,
            }
        if settings["context_model"]:
            options |= {"trt_dump_ep_context_model": "True", "trt_ep_context_file_path": _CONTEXT}
        return options

    def sign_engines(self, settings: Mapping[str, Any]) -> None:
        """Put codes beside the engines and timings that the session has just written."""
        if settings["engine_cache"]:
            sign_all(private_folder() / "onnxruntime")


def _engine_folder() -> Path:
    """Where the TensorRT provider keeps its engines: in a folder that holds none but this user's."""
    folder = private_folder() / "onnxruntime"
    folder.mkdir(mode=0o700, exist_ok=True)
    keep_only_own(folder)
    return folder


def checked(options: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with defaults filled in. InputError on an unknown key or a wrong kind of value."""
    for key, value in options.items():
        if key not in OPTIONS:
            raise InputError(f"unknown option {quoted(str(key))}: options are {', '.join(sorted(OPTIONS))}")
        if type(value) is not type(_DEFAULTS[key]):
            kind = "a number of bytes" if key == "workspace" else "true or false"
            raise InputError(f"option '{key}' must be {kind}, not {quoted(str(value))}")
    return _DEFAULTS | dict(options)


def read_settings(path: Path) -> dict[str, Any]:
    """The settings beside a model, or the defaults where it has none."""
    beside = path.with_name(_SETTINGS)
    if not beside.is_file():
        return dict(_DEFAULTS)
    try:
        data = json.loads(beside.read_text(encoding="utf-8"))
    except ValueError as e:
        raise InputError(f"{quoted(str(beside))} is damaged: compile again") from e
    if not isinstance(data, dict):
        raise InputError(f"{quoted(str(beside))} holds no settings: compile again")
    return checked(data)


def node_times(events: Sequence[Mapping[str, Any]], runs: int) -> list[LayerTime]:
    """Mean microseconds per node and run from the events of ONNX Runtime's trace."""
    totals: dict[tuple[str, str, str], float] = {}
    for event in events:
        arguments = event.get("args", {})
        if event.get("cat") != "Node" or not str(event.get("name", "")).endswith("_kernel_time"):
            continue
        name = str(event["name"]).removesuffix("_kernel_time")
        key = (name, str(arguments.get("op_name", "")), str(arguments.get("provider", "")))
        totals[key] = totals.get(key, 0.0) + float(event["dur"])
    return [LayerTime(name, op, total / runs, provider) for (name, op, provider), total in totals.items()]


def zeros_for(path: Path) -> dict[str, np.ndarray]:
    """Zeros for every input, with 1 for each dimension that is free."""
    model = ir.load(path)
    feeds = {}
    for value in model.graph.inputs:
        if value.dtype is None or value.shape is None:
            raise InputError(
                f"{path.name}: input {quoted(value.name or '')} has no type or shape: give --input"
            )
        shape = [size if isinstance(size, int) else 1 for size in value.shape]
        feeds[value.name or ""] = np.zeros(shape, value.dtype.numpy())
    return feeds
