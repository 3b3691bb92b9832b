"""`--emit onnx`: what lies beside a TensorRT-ready model so that a machine with a GPU can build it."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

from sparsecc.backends.nvidia.options import BuildOptions, as_mapping
from sparsecc.backends.nvidia.trtexec import ENGINE, ONNX, Version, build_argv
from sparsecc.errors import InputError
from sparsecc.escaping import quoted
from sparsecc.options.builder_keys import LeftOut, build_settings

SETTINGS = "build.json"
SHELL, PYTHON = "build.sh", "build.py"
_SCHEMA = "sparsecc.tensorrt-build/1"
_TEN: Version = (10, 13, 0)
_ELEVEN: Version = (11, 0, 0)

_FLAGS = {
    "--onnx": "the model to build, its types as they stand in it",
    "--saveEngine": "the plan to write",
    "--skipInference": "build only, do not time it",
    "--stronglyTyped": "keep the types of the model (TensorRT 11 always does and has no flag)",
    "--profilingVerbosity": "keep layer names and kernels, for reports",
    "--exportLayerInfo": "write what each layer became",
    "--memPoolSize": "scratch memory that kernels may use, in MiB",
    "--builderOptimizationLevel": "0 builds fastest, 5 searches longest",
    "--tacticSources": "kernel libraries to use besides the default ones",
    "--hardwareCompatibilityLevel": "GPUs that the plan shall run on",
    "--versionCompatible": "the plan also loads in later versions",
    "--refit": "weights can be replaced later",
    "--stripWeights": "leave the weights out of the plan; refit it before it runs",
    "--allowWeightStreaming": "weights may stay in host memory",
    "--sparsity": "use sparse kernels where weights are 2:4 and that is faster",
    "--noTF32": "compute fp32 in full precision",
    "--dynamicPlugins": "a library of plugins",
    "--timingCacheFile": "remember kernel timings between builds",
    "--minShapes": "smallest shape of each dynamic input",
    "--optShapes": "shape to tune for",
    "--maxShapes": "largest shape",
}

_SHELL = """#!/bin/sh
# Builds {engine} from {onnx} with trtexec. Run it on the machine (and GPU) that the engine is for.
#
{explained}
set -eu
cd "$(dirname "$0")"
trtexec="${{TRTEXEC:-trtexec}}"
if ! command -v "$trtexec" >/dev/null 2>&1; then
    trtexec=/usr/src/tensorrt/bin/trtexec
fi
version=$("$trtexec" --help 2>&1 | sed -n 's/.*\\[TensorRT v\\([0-9]*\\)\\].*/\\1/p' | head -n 1)
if [ "${{version:-0}}" -ge 110000 ]; then
    exec "$trtexec" {eleven}
elif [ "${{version:-0}}" -ge 100000 ]; then
    exec "$trtexec" {ten}
fi
echo "TensorRT 10 or later is needed; trtexec says version '${{version:-none}}'" >&2
exit 3
"""

_PYTHON = '''"""Builds {engine} from {onnx} with TensorRT's Python API (10.13+ or 11), beside the GPU."""

import pathlib
import sys

import tensorrt as trt

OPTIONS = {options}


def main() -> int:
    here = pathlib.Path(__file__).resolve().parent
    logger = trt.Logger(trt.Logger.WARNING)
    trt.init_libnvinfer_plugins(logger, "")
    try:
        builder = trt.Builder(logger)
    except (TypeError, RuntimeError) as e:
        print(f"TensorRT's builder does not start here (no usable GPU or driver): {{e}}", file=sys.stderr)
        return 3
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(here / "{onnx}")):
        for index in range(parser.num_errors):
            error = parser.get_error(index)
            print(f"{{error.node_name()}} ({{error.node_operator()}}): {{error.desc()}}", file=sys.stderr)
        return 2
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if OPTIONS["workspace"]:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, OPTIONS["workspace"])
    if OPTIONS["optimization_level"] is not None:
        config.builder_optimization_level = OPTIONS["optimization_level"]
    for name in OPTIONS["flags"]:
        config.set_flag(getattr(trt.BuilderFlag, name))
    if not OPTIONS["tf32"]:
        config.clear_flag(trt.BuilderFlag.TF32)
    if OPTIONS["hardware"]:
        config.hardware_compatibility_level = getattr(trt.HardwareCompatibilityLevel, OPTIONS["hardware"])
    if OPTIONS["profiles"]:
        profile = builder.create_optimization_profile()
        for name, (low, opt, high) in OPTIONS["profiles"].items():
            profile.set_shape(name, low, opt, high)
        config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        return 1
    (here / "{engine}").write_bytes(plan)
    return 0


if __name__ == "__main__":
    sys.exit(main())
'''


def write_scripts(folder: Path, options: BuildOptions) -> tuple[str, ...]:
    """Write build.sh, build.py and build.json into `folder`; returns their names."""
    (folder / SHELL).write_text(shell_script(options), encoding="utf-8")
    (folder / SHELL).chmod(0o755)
    (folder / PYTHON).write_text(python_script(options), encoding="utf-8")
    settings, _ = build_settings(as_mapping(options))
    data = {"schema": _SCHEMA, "options": settings}
    (folder / SETTINGS).write_text(json.dumps(data, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return SHELL, PYTHON, SETTINGS


def read_settings(folder: Path) -> tuple[BuildOptions, list[LeftOut]]:
    """(the options of an emitted bundle, what no file may set). InputError when `build.json` is missing or damaged."""
    path = folder / SETTINGS
    try:
        data: Any = json.loads(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise InputError(
            f"{quoted(str(folder))} has no {SETTINGS}: it was not compiled with --emit onnx"
        ) from e
    except ValueError as e:
        raise InputError(f"{quoted(str(path))} is damaged: compile again with --emit onnx") from e
    if (
        not isinstance(data, dict)
        or data.get("schema") != _SCHEMA
        or not isinstance(data.get("options"), dict)
    ):
        raise InputError(f"{quoted(str(path))} is not of {_SCHEMA}: compile again with --emit onnx")
    settings, left = build_settings(data["options"])
    return BuildOptions.from_mapping(settings), left


def shell_script(options: BuildOptions) -> str:
    """build.sh: one trtexec line for 10 and one for 11, with what each flag means."""
    ten, eleven = (build_argv("trtexec", version, options)[1:] for version in (_TEN, _ELEVEN))
    used = list(dict.fromkeys(flag.partition("=")[0] for flag in (*ten, *eleven)))
    explained = "\n".join(f"#   {flag:<28} {_FLAGS[flag]}" for flag in used)
    return _SHELL.format(
        engine=ENGINE, onnx=ONNX, explained=explained, ten=shlex.join(ten), eleven=shlex.join(eleven)
    )


def python_script(options: BuildOptions) -> str:
    """build.py: the same through the Python API."""
    switches = {
        "VERSION_COMPATIBLE": options.version_compatible,
        "REFIT": options.refit or options.stripped,
        "STRIP_PLAN": options.stripped,
        "WEIGHT_STREAMING": options.weight_streaming,
        "SPARSE_WEIGHTS": options.sparse_weights,
    }
    hardware = {"none": "", "ampere+": "AMPERE_PLUS", "same-compute-capability": "SAME_COMPUTE_CAPABILITY"}
    settings = {
        "workspace": options.workspace,
        "optimization_level": options.optimization_level,
        "flags": [name for name, asked in switches.items() if asked],
        "tf32": options.tf32,
        "hardware": hardware[options.hardware_compatible],
        "profiles": {name: (p.low, p.opt, p.high) for name, p in (options.profiles or {}).items()},
    }
    return _PYTHON.format(engine=ENGINE, onnx=ONNX, options=repr(settings))
