"""The part of TensorRT's Python API that we use, as types.

mypy holds our code to these classes, and a test holds these classes to the real APIs: 10, 11 and RTX. A class
or member marked `Only` is not in all of them; the code that uses it asks `has` first.
"""

# ruff: noqa: D101 - these classes bear the names of TensorRT's, whose documentation holds

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol


class IHostMemory(Protocol):
    nbytes: int

    def __buffer__(self, flags: int, /) -> memoryview: ...


class ParserError(Protocol):
    def code(self) -> object: ...
    def desc(self) -> str: ...
    def node(self) -> int: ...
    def node_name(self) -> str: ...
    def node_operator(self) -> str: ...


class ITensor(Protocol):
    name: str
    shape: tuple[int, ...]
    is_shape_tensor: bool


class INetworkDefinition(Protocol):
    num_inputs: int
    num_outputs: int
    num_layers: int

    def get_input(self, index: int, /) -> ITensor: ...


class OnnxParser(Protocol):
    num_errors: int

    def parse_from_file(self, model: str, /) -> bool: ...
    def supports_model_v2(self, model: bytes, path: str, /) -> bool: ...
    def get_error(self, index: int, /) -> ParserError: ...


class IOptimizationProfile(Protocol):
    def set_shape(
        self, name: str, low: tuple[int, ...], opt: tuple[int, ...], high: tuple[int, ...], /
    ) -> None: ...


class ITimingCache(Protocol):
    def serialize(self) -> IHostMemory: ...


class IBuilderConfig(Protocol):
    builder_optimization_level: int
    hardware_compatibility_level: object
    profiling_verbosity: object
    progress_monitor: object

    def set_flag(self, flag: object, /) -> None: ...
    def clear_flag(self, flag: object, /) -> None: ...
    def set_memory_pool_limit(self, pool: object, size: int, /) -> None: ...
    def set_tactic_sources(self, sources: int, /) -> bool: ...
    def create_timing_cache(self, data: bytes, /) -> ITimingCache: ...
    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool, /) -> bool: ...
    def get_timing_cache(self) -> ITimingCache | None: ...
    def add_optimization_profile(self, profile: IOptimizationProfile, /) -> int: ...


class OnlyRtxIBuilderConfig(IBuilderConfig, Protocol):
    """What the configuration of TensorRT-RTX has besides."""

    num_compute_capabilities: int

    def set_compute_capability(self, capability: object, index: int, /) -> bool: ...


class IPluginRegistry(Protocol):
    def load_library(self, path: str, /) -> object: ...


class Builder(Protocol):
    def create_network(self, flags: int, /) -> INetworkDefinition: ...
    def create_builder_config(self) -> IBuilderConfig: ...
    def create_optimization_profile(self) -> IOptimizationProfile: ...
    def build_serialized_network(
        self, network: INetworkDefinition, config: IBuilderConfig, /
    ) -> IHostMemory | None: ...
    def get_plugin_registry(self) -> IPluginRegistry: ...


class EngineInspector(Protocol):
    execution_context: object

    def get_engine_information(self, layer_format: object, /) -> str: ...


class ICudaEngine(Protocol):
    num_io_tensors: int
    num_layers: int
    refittable: bool
    device_memory_size_v2: int

    def create_execution_context(self) -> IExecutionContext | None: ...
    def create_engine_inspector(self) -> EngineInspector: ...
    def get_tensor_name(self, index: int, /) -> str: ...
    def get_tensor_mode(self, name: str, /) -> object: ...
    def get_tensor_dtype(self, name: str, /) -> Enumerator: ...


class IExecutionContext(Protocol):
    profiler: object
    enqueue_emits_profile: bool

    def set_input_shape(self, name: str, shape: tuple[int, ...], /) -> bool: ...
    def get_tensor_shape(self, name: str, /) -> tuple[int, ...]: ...
    def set_tensor_address(self, name: str, address: int, /) -> bool: ...
    def execute_async_v3(self, stream: int, /) -> bool: ...
    def report_to_profiler(self) -> bool: ...


class Refitter(Protocol):
    def get_missing_weights(self) -> list[str]: ...
    def refit_cuda_engine(self) -> bool: ...


class OnnxParserRefitter(Protocol):
    num_errors: int

    def refit_from_file(self, model: str, /) -> bool: ...


class Runtime(Protocol):
    engine_host_code_allowed: bool

    def deserialize_cuda_engine(self, plan: bytes, /) -> ICudaEngine | None: ...


class Enumerator(Protocol):
    """One member of an enumeration of the bindings."""

    name: str

    def __int__(self) -> int: ...


class BuilderFlag(Protocol):
    DISABLE_TIMING_CACHE: object
    EXCLUDE_LEAN_RUNTIME: object
    REFIT: object
    SPARSE_WEIGHTS: object
    STRIP_PLAN: object
    TF32: object
    VERSION_COMPATIBLE: object
    WEIGHT_STREAMING: object


class NetworkDefinitionCreationFlag(Protocol):
    STRONGLY_TYPED: Enumerator


class HardwareCompatibilityLevel(Protocol):
    AMPERE_PLUS: object
    SAME_COMPUTE_CAPABILITY: object


class LayerInformationFormat(Protocol):
    JSON: object


class MemoryPoolType(Protocol):
    WORKSPACE: object


class ProfilingVerbosity(Protocol):
    DETAILED: object


class TensorIOMode(Protocol):
    INPUT: object
    OUTPUT: object


class Severity(Protocol):
    INTERNAL_ERROR: Enumerator
    ERROR: Enumerator
    WARNING: Enumerator
    INFO: Enumerator
    VERBOSE: Enumerator


class Members(Protocol):
    """An enumeration whose members users name themselves: TacticSource, ComputeCapability."""

    __members__: dict[str, Enumerator]


class Api(Protocol):
    """The module: `tensorrt` or `tensorrt_rtx_bindings`."""

    __version__: str
    BuilderFlag: BuilderFlag
    HardwareCompatibilityLevel: HardwareCompatibilityLevel
    ILogger: Any
    IProfiler: Any
    IProgressMonitor: Any
    LayerInformationFormat: LayerInformationFormat
    MemoryPoolType: MemoryPoolType
    NetworkDefinitionCreationFlag: NetworkDefinitionCreationFlag
    ProfilingVerbosity: ProfilingVerbosity
    TacticSource: Members
    TensorIOMode: TensorIOMode

    def Builder(self, logger: object, /) -> Builder: ...  # noqa: N802 - TensorRT's name
    def OnnxParser(self, network: INetworkDefinition, logger: object, /) -> OnnxParser: ...  # noqa: N802
    def OnnxParserRefitter(self, refitter: Refitter, logger: object, /) -> OnnxParserRefitter: ...  # noqa: N802
    def Refitter(self, engine: ICudaEngine, logger: object, /) -> Refitter: ...  # noqa: N802
    def Runtime(self, logger: object, /) -> Runtime: ...  # noqa: N802
    def init_libnvinfer_plugins(self, logger: object, namespace: str, /) -> bool: ...


class OnlyRtxApi(Api, Protocol):
    """What the module of TensorRT-RTX has besides."""

    ComputeCapability: Members


def names_of(members: Members) -> Iterator[str]:
    """The names of an enumeration's members, without the placeholders."""
    return (name for name in members.__members__ if name != "NONE")
