"""trtexec's command lines, by version, and what it writes: the builder of machines without TensorRT's Python.

A command is always a list of arguments. Files are named relative to the folder it runs in.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sparsecc.backends.nvidia.options import BuildOptions, Profile
from sparsecc.errors import InputError
from sparsecc.escaping import one_line, quoted
from sparsecc.runtime.runner import LayerTime

Version = tuple[int, int, int]
ONNX, ENGINE, LAYERS, TIMES, LAYER_TIMES = (
    "model.onnx",
    "model.engine",
    "layers.json",
    "times.json",
    "profile.json",
)
FIRST_SUPPORTED: Version = (10, 0, 0)

_VERSION = re.compile(r"\[TensorRT v(\d{4,6})\]")
_FIRST_OF_11: Version = (11, 0, 0)
_LARGEST_TIME_MS = 3_600_000.0


@dataclass(frozen=True)
class Times:
    """Raw samples of a trtexec run in milliseconds: on the GPU alone, and with the copies."""

    compute: tuple[float, ...]
    latency: tuple[float, ...]


def version_in(output: str) -> Version:
    """The version in what `trtexec --help` prints: `[TensorRT v101303]` is 10.13.3. InputError if none."""
    found = _VERSION.search(output)
    if not found:
        raise InputError("trtexec does not say its version: give the path of NVIDIA's own trtexec")
    number = int(found[1])
    if number >= 100_000:
        return number // 10_000, number // 100 % 100, number % 100
    return number // 1_000, number // 100 % 10, number % 100


def checked_version(output: str) -> Version:
    """`version_in`, refusing versions that know no strongly typed networks built as we write them."""
    version = version_in(output)
    if version < FIRST_SUPPORTED:
        raise InputError(f"trtexec is {dotted(version)}: sparsecc needs TensorRT 10 or later: update it")
    return version


def dotted(version: Version) -> str:
    """`10.13.3`."""
    return ".".join(str(part) for part in version)


def build_argv(
    program: str,
    version: Version,
    options: BuildOptions,
    *,
    plugins: Sequence[str] = (),
    timing_cache: str | None = None,
) -> list[str]:
    """The command that builds `model.onnx` into `model.engine` and writes `layers.json`; nothing is run."""
    argv = [program, f"--onnx={ONNX}", f"--saveEngine={ENGINE}", "--skipInference"]
    argv += typing_flags(version)
    argv += ["--profilingVerbosity=detailed", f"--exportLayerInfo={LAYERS}"]
    if options.workspace is not None:
        argv.append(f"--memPoolSize=workspace:{max(options.workspace >> 20, 1)}")
    if options.optimization_level is not None:
        argv.append(f"--builderOptimizationLevel={options.optimization_level}")
    if options.tactic_sources:
        argv.append("--tacticSources=" + ",".join(f"+{name}" for name in options.tactic_sources))
    if options.hardware_compatible != "none":
        argv.append(f"--hardwareCompatibilityLevel={_HARDWARE[options.hardware_compatible]}")
    argv += [flag for flag, asked in _switches(options) if asked]
    argv += [f"--dynamicPlugins={name}" for name in plugins]
    if timing_cache is not None:
        argv.append(f"--timingCacheFile={timing_cache}")
    return argv + _profile_flags(options.profiles or {})


def time_argv(
    program: str,
    version: Version,
    *,
    shapes: dict[str, tuple[int, ...]] | None = None,
    graph: bool = False,
    iterations: int = 100,
    layers: bool = False,
) -> list[str]:
    """The command that runs `model.engine` and writes `times.json`, and `profile.json` with `layers`.

    Both majors measure the same thing: no copies, spin wait, CUDA graph only when asked. 11 turned those
    defaults round, so the flags differ. Warm-up is 200 milliseconds, which is how trtexec counts it.
    """
    argv = [program, f"--loadEngine={ENGINE}", f"--exportTimes={TIMES}"]
    argv += [f"--iterations={iterations}", "--warmUp=200"]
    if version >= _FIRST_OF_11:
        argv += [] if graph else ["--noCudaGraph"]
    else:
        argv += ["--noDataTransfers", "--useSpinWait"] + (["--useCudaGraph"] if graph else [])
    if shapes:
        argv.append("--shapes=" + _shape_list(shapes))
    if layers:
        argv += ["--dumpProfile", "--separateProfileRun", f"--exportProfile={LAYER_TIMES}"]
    return argv


def typing_flags(version: Version) -> list[str]:
    """10 must be told that types are in the model; 11 knows nothing else and has no flag for it."""
    return [] if version >= _FIRST_OF_11 else ["--stronglyTyped"]


def parse_times(text: str) -> Times:
    """The samples of `--exportTimes`. InputError unless every one is a plausible time in milliseconds."""
    rows = _json_list(text, TIMES)
    compute = tuple(_milliseconds(row, "computeMs") for row in rows)
    latency = tuple(
        _milliseconds(row, "latencyMs") if "latencyMs" in row else c
        for row, c in zip(rows, compute, strict=True)
    )
    if not compute:
        raise InputError(f"{TIMES} of trtexec holds no samples: run it again")
    return Times(compute, latency)


def parse_profile(text: str) -> list[LayerTime]:
    """The layers of `--exportProfile`, in microseconds per run."""
    rows = [row for row in _json_list(text, LAYER_TIMES) if "name" in row]
    return [
        LayerTime(one_line(str(row["name"]), 500), "", 1000 * _milliseconds(row, "averageMs"), "TensorRT")
        for row in rows
    ]


def error_lines(output: str) -> list[str]:
    """The errors that trtexec logged, without its stamps; its last line where it logged none."""
    errors = [line.partition("[E]")[2].strip() for line in output.splitlines() if "[E]" in line]
    return errors or (output.strip().splitlines() or ["it printed nothing"])[-1:]


def failure_line(output: str) -> str:
    """The last of them, on one line."""
    return one_line(error_lines(output)[-1], 240)


_HARDWARE = {"ampere+": "ampere+", "same-compute-capability": "sameComputeCapability"}


def _switches(options: BuildOptions) -> list[tuple[str, bool]]:
    return [
        ("--versionCompatible", options.version_compatible),
        ("--refit", options.refit or options.stripped),
        ("--stripWeights", options.stripped),
        ("--allowWeightStreaming", options.weight_streaming),
        ("--sparsity=enable", options.sparse_weights),
        ("--noTF32", not options.tf32),
    ]


def _profile_flags(profiles: Any) -> list[str]:
    if not profiles:
        return []
    parts: dict[str, dict[str, tuple[int, ...]]] = {"min": {}, "opt": {}, "max": {}}
    for name, profile in profiles.items():
        shapes: Profile = profile
        parts["min"][name], parts["opt"][name], parts["max"][name] = shapes.low, shapes.opt, shapes.high
    return [f"--{kind}Shapes={_shape_list(shapes)}" for kind, shapes in parts.items()]


def _shape_list(shapes: dict[str, tuple[int, ...]]) -> str:
    return ",".join(
        f"{_input_name(name)}:{'x'.join(str(s) for s in shape)}" for name, shape in shapes.items()
    )


def _input_name(name: str) -> str:
    """trtexec separates with ':' and ',', and takes a name that holds them in single quotes."""
    if "'" in name or any(ord(c) < 32 for c in name):
        raise InputError(
            f"trtexec cannot be given the input name {quoted(name)}: rename the input of the model"
        )
    return f"'{name}'" if set(name) & set(":, ") else name


def _json_list(text: str, where: str) -> list[dict[str, Any]]:
    try:
        data = json.loads(text)
    except ValueError as e:
        raise InputError(f"{where} of trtexec is not JSON ({one_line(str(e), 60)}): run it again") from e
    if not isinstance(data, list) or not all(isinstance(row, dict) for row in data):
        raise InputError(f"{where} of trtexec is not a list of records: run it again")
    return data


def _milliseconds(row: dict[str, Any], key: str) -> float:
    value: Any = row.get(key)
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or not 0 <= value < _LARGEST_TIME_MS:
        raise InputError(f"trtexec reports {key} {one_line(repr(value), 40)}, which is no time: run it again")
    return float(value)
