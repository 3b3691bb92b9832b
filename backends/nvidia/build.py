"""From a TensorRT-ready ONNX file to a plan, through the Python API: TensorRT 10.13 and later, 11, and RTX.

It runs in the calling process. The native builder can crash on a bad model, so callers put it in a worker.
"""

from __future__ import annotations

import hashlib
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from sparsecc.backends.nvidia.api import (
    RTX,
    TENSORRT,
    THREE_WAYS,
    Flavour,
    Log,
    has,
    interruptible,
    load,
    logger_into,
    make_builder,
    progress_monitor,
)
from sparsecc.backends.nvidia.cache import TimingCacheFile
from sparsecc.backends.nvidia.device import NoGpuError, gpus
from sparsecc.backends.nvidia.errors import Refusal, build_failure, nodes_of, parse_refusal, summary
from sparsecc.backends.nvidia.layer_types import (
    Api,
    Builder,
    IBuilderConfig,
    INetworkDefinition,
    ITensor,
    OnlyRtxApi,
    OnlyRtxIBuilderConfig,
    OnnxParser,
    names_of,
)
from sparsecc.backends.nvidia.options import BuildOptions, Profile, Shape
from sparsecc.backends.nvidia.plans import vouch
from sparsecc.errors import InputError, UnavailableError
from sparsecc.escaping import quoted
from sparsecc.runtime.runner import Progress

DEFAULT_BATCHES = (1, 1, 8)
"""Shapes to build for when only the first dimension of an input is dynamic and none are given."""

_PARSED = 0.05
_SPARSITY = re.compile(r"\(Sparsity\) (.*)")


@dataclass(frozen=True)
class _Parsed:
    """The parser owns the weights that the network points to: the two live and die together."""

    network: INetworkDefinition
    parser: OnnxParser


def build_plan(
    flavour: Flavour, onnx: Path, plan: Path, options: BuildOptions, progress: Progress
) -> dict[str, Any]:
    """Build `onnx` and write the serialized engine to `plan`; returns facts for the report.

    InputError when the model or an option does not fit, UnavailableError when this machine cannot build,
    KeyboardInterrupt after Ctrl-C. Nothing is written then.
    """
    _refuse_what_never_works(flavour, options)
    began = time.perf_counter()
    api, log = load(flavour), Log()
    logger = logger_into(api, log)
    builder = make_builder(api, flavour, logger)
    plugins = load_plugins(api, builder, logger, options.plugins)
    progress("reading the model", 0.0)
    parsed = _parsed(api, builder, logger, onnx)
    config = builder.create_builder_config()
    facts = _configure(api, flavour, builder, config, parsed.network, options)
    cache = TimingCacheFile.open(flavour, api.__version__, options.timing_cache)
    cache.attach(config)
    data = _serialized(api, builder, parsed, config, progress)
    if data is None:
        raise _failed(log, onnx)
    cache.keep(config)
    plan.write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    vouch(plan)
    progress("plan written", 1.0)
    return facts | {
        "version": api.__version__,
        "plan_bytes": len(data),
        "plan_sha256": digest,
        "network_layers": parsed.network.num_layers,
        "plugins": plugins,
        "timing_cache": cache.facts(),
        "sparsity": sparsity_lines(log.other),
        "warnings": log.warnings[:50],
        "build_seconds": round(time.perf_counter() - began, 3),
    }


def build_task(request: Mapping[str, Any], emit: Callable[[Any], None]) -> dict[str, Any]:
    """`build_plan` as a task of `sparsecc.worker`: a crash of the native builder ends the worker only.

    The request holds `target`, `onnx` and `plan` (paths), and `options`.
    """
    flavour = RTX if request["target"] == RTX.target else TENSORRT
    options = BuildOptions.from_mapping(request["options"])

    def progress(what: str, share: float) -> None:
        emit({"stage": what, "share": share})

    return build_plan(flavour, Path(request["onnx"]), Path(request["plan"]), options, progress)


def check_support(flavour: Flavour, onnx: Path) -> list[Refusal]:
    """Every node of `onnx` that the parser refuses, from its own support query; empty when it takes all."""
    api, log = load(flavour), Log()
    logger = logger_into(api, log)
    builder = make_builder(api, flavour, logger)
    return _unsupported(api, builder, logger, onnx)


def sparsity_lines(lines: Sequence[str]) -> list[str]:
    """What the builder logged on 2:4: the layers eligible, and those for which it picked a sparse kernel."""
    return [found[1] for line in lines if (found := _SPARSITY.search(line))]


def load_plugins(api: Api, builder: Builder, logger: object, folder: str | None) -> list[str]:
    """Register TensorRT's own plugins and every shared library of `folder`; returns the files' names."""
    if has(api, "init_libnvinfer_plugins"):
        api.init_libnvinfer_plugins(logger, "")
    if folder is None:
        return []
    found = sorted(p for p in Path(folder).iterdir() if p.suffix in {".so", ".dll"})
    if not found:
        raise InputError(
            f"plugins folder {quoted(folder)} holds no .so or .dll: give the folder of the libraries"
        )
    registry = builder.get_plugin_registry()
    for library in found:
        if registry.load_library(str(library.resolve())) is None:
            raise InputError(
                f"plugin {quoted(str(library))} does not load: build it for this version of TensorRT"
            )
    return [library.name for library in found]


def _refuse_what_never_works(flavour: Flavour, options: BuildOptions) -> None:
    if flavour is RTX and options.version_compatible:
        raise InputError("TensorRT-RTX has no version-compatible plans: leave version_compatible out")
    if "CURRENT" in options.compute_capabilities:
        try:
            gpus()
        except NoGpuError as e:
            raise UnavailableError(
                f"compute capability 'current' asks for a GPU here and {e}: name them, for example 8.6,12.0"
            ) from e
    if flavour is not RTX and options.compute_capabilities:
        raise InputError(
            "compute_capabilities are for --target tensorrt-rtx: TensorRT builds for the GPU it finds"
        )


def _new_parser(api: Api, builder: Builder, logger: object) -> _Parsed:
    strong = 1 << int(api.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(strong)
    return _Parsed(network, api.OnnxParser(network, logger))


def _parsed(api: Api, builder: Builder, logger: object, onnx: Path) -> _Parsed:
    parsed = _new_parser(api, builder, logger)
    if not parsed.parser.parse_from_file(str(onnx)):
        refusals = _refusals(parsed.parser) + _unsupported(api, builder, logger, onnx)
        raise InputError(f"{quoted(onnx.name)} does not build: {summary(refusals)}")
    if parsed.network.num_outputs == 0 or parsed.network.num_inputs == 0:
        raise InputError(
            f"{quoted(onnx.name)} has no inputs or outputs for TensorRT: is it a complete ONNX model?"
        )
    return parsed


def _unsupported(api: Api, builder: Builder, logger: object, onnx: Path) -> list[Refusal]:
    """The support query fills the network it is given, so it gets one of its own."""
    probe = _new_parser(api, builder, logger)
    if has(probe.parser, "supports_model_v2"):
        probe.parser.supports_model_v2(onnx.read_bytes(), str(onnx))
    return _refusals(probe.parser)


def _refusals(parser: OnnxParser) -> list[Refusal]:
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    return [parse_refusal(e.desc(), e.node_name(), e.node_operator()) for e in errors]


def _configure(
    api: Api,
    flavour: Flavour,
    builder: Builder,
    config: IBuilderConfig,
    network: INetworkDefinition,
    options: BuildOptions,
) -> dict[str, Any]:
    if options.workspace is not None:
        config.set_memory_pool_limit(api.MemoryPoolType.WORKSPACE, options.workspace)
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
    config.profiling_verbosity = api.ProfilingVerbosity.DETAILED
    flags = _set_flags(api, config, options)
    if options.tactic_sources:
        config.set_tactic_sources(_tactic_bits(api, options.tactic_sources))
    if options.hardware_compatible != "none":
        config.hardware_compatibility_level = {
            "ampere+": api.HardwareCompatibilityLevel.AMPERE_PLUS,
            "same-compute-capability": api.HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY,
        }[options.hardware_compatible]
    if flavour is RTX and options.compute_capabilities:
        _set_capabilities(
            cast(OnlyRtxApi, api), cast(OnlyRtxIBuilderConfig, config), options.compute_capabilities
        )
    profiles = _set_profiles(builder, config, network, options.profiles or {})
    return {
        "flags": flags,
        "optimization_level": config.builder_optimization_level,
        "hardware_compatible": options.hardware_compatible,
        "compute_capabilities": list(options.compute_capabilities),
        "profiles": profiles,
    }


def _set_flags(api: Api, config: IBuilderConfig, options: BuildOptions) -> list[str]:
    flags = api.BuilderFlag
    wanted = {
        "VERSION_COMPATIBLE": (options.version_compatible, flags.VERSION_COMPATIBLE),
        "REFIT": (options.refit or options.stripped, flags.REFIT),
        "STRIP_PLAN": (options.stripped, flags.STRIP_PLAN),
        "WEIGHT_STREAMING": (options.weight_streaming, flags.WEIGHT_STREAMING),
        "SPARSE_WEIGHTS": (options.sparse_weights, flags.SPARSE_WEIGHTS),
    }
    for asked, flag in wanted.values():
        if asked:
            config.set_flag(flag)
    if not options.tf32:
        config.clear_flag(flags.TF32)
    return [name for name, (asked, _) in wanted.items() if asked]


def _tactic_bits(api: Api, names: Sequence[str]) -> int:
    members = api.TacticSource.__members__
    for name in names:
        if name not in members:
            raise InputError(
                f"TensorRT {api.__version__} has no tactic source {quoted(name)}: "
                f"it has {', '.join(names_of(api.TacticSource))}"
            )
    return sum(1 << int(members[name]) for name in names)


def _set_capabilities(api: OnlyRtxApi, config: OnlyRtxIBuilderConfig, names: Sequence[str]) -> None:
    members = api.ComputeCapability.__members__
    config.num_compute_capabilities = len(names)
    for index, name in enumerate(names):
        if name not in members or not config.set_compute_capability(members[name], index):
            raise InputError(
                f"TensorRT-RTX {api.__version__} does not build for {name} (here, among {', '.join(names)}): "
                f"it knows {', '.join(names_of(api.ComputeCapability))}"
            )


def _set_profiles(
    builder: Builder, config: IBuilderConfig, network: INetworkDefinition, given: Mapping[str, Profile]
) -> dict[str, list[list[int]]]:
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    unknown = sorted(set(given) - {tensor.name for tensor in inputs})
    if unknown:
        names = ", ".join(quoted(tensor.name, 40) for tensor in inputs)
        raise InputError(f"no input {quoted(unknown[0])} in the model: its inputs are {names}")
    chosen = {tensor.name: _profile_of(tensor, given.get(tensor.name)) for tensor in inputs}
    used = {name: profile for name, profile in chosen.items() if profile is not None}
    if used:
        profile = builder.create_optimization_profile()
        for name, shapes in used.items():
            profile.set_shape(name, shapes.low, shapes.opt, shapes.high)
        config.add_optimization_profile(profile)
    return {name: [list(p.low), list(p.opt), list(p.high)] for name, p in used.items()}


def _profile_of(tensor: ITensor, given: Profile | None) -> Profile | None:
    """The shapes to build for; None when the input is static."""
    shape, name = tuple(tensor.shape), quoted(tensor.name)
    if tensor.is_shape_tensor and given is None:
        raise InputError(f"input {name} holds a shape: make it a constant before building for TensorRT")
    if given is not None:
        if len(given.low) != len(shape) or any(
            size >= 0 and (low, high) != (size, size)
            for size, low, high in zip(shape, given.low, given.high, strict=True)
        ):
            raise InputError(
                f"profile of input {name} does not fit its shape {list(shape)} (-1 is free): mend --input"
            )
        return given if -1 in shape else None
    if -1 not in shape:
        return None
    if shape[0] != -1 or -1 in shape[1:]:
        raise InputError(
            f"input {name} has dynamic dimensions {list(shape)}: give --input {tensor.name}:min|opt|max"
        )
    rest: Shape = shape[1:]
    low, opt, high = ((batch, *rest) for batch in DEFAULT_BATCHES)
    return Profile(low, opt, high)


def _serialized(
    api: Api, builder: Builder, parsed: _Parsed, config: IBuilderConfig, progress: Progress
) -> bytes | None:
    cancelled = threading.Event()
    config.progress_monitor = progress_monitor(
        api, lambda what, share: progress(what, _PARSED + (1 - _PARSED) * share), cancelled
    )
    with interruptible(cancelled):
        memory = builder.build_serialized_network(parsed.network, config)
    return None if memory is None else bytes(cast(Any, memory))


def _failed(log: Log, onnx: Path) -> InputError | UnavailableError:
    refusal = build_failure(log.errors, nodes_of(onnx))
    kind = UnavailableError if THREE_WAYS.split(",")[0] in refusal.remedy else InputError
    return kind(f"{quoted(onnx.name)} does not build: {refusal}")
