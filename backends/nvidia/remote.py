"""Build and time plans with trtexec on a device: this machine, or a Jetson or DRIVE over SSH."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

from sparsecc.backends.nvidia.build import sparsity_lines
from sparsecc.backends.nvidia.errors import Nodes, build_failure, nodes_of
from sparsecc.backends.nvidia.options import BuildOptions
from sparsecc.backends.nvidia.trtexec import (
    ENGINE,
    LAYER_TIMES,
    LAYERS,
    ONNX,
    TIMES,
    Times,
    Version,
    build_argv,
    checked_version,
    dotted,
    error_lines,
    failure_line,
    parse_profile,
    parse_times,
    time_argv,
)
from sparsecc.devices import Completed, Device
from sparsecc.errors import InputError, UnavailableError
from sparsecc.escaping import one_line
from sparsecc.runtime.runner import LayerTime, Progress

PLACES = ("trtexec", "/usr/src/tensorrt/bin/trtexec", "/opt/tensorrt/bin/trtexec")
"""Where trtexec lies: on the path, where JetPack and the Debian packages put it, in NVIDIA's containers."""

BUILD_SECONDS = 4 * 3600.0
RUN_SECONDS = 600.0
_LARGEST_PLAN = 16 << 30
_LARGEST_JSON = 256 << 20


def local_trtexec() -> str | None:
    """The trtexec of this machine, if there is one."""
    return next((found for place in PLACES if (found := shutil.which(place))), None)


def find_trtexec(device: Device) -> tuple[str, Version]:
    """The program and its version on the device. UnavailableError when it has none."""
    for place in PLACES:
        said = device.run([place, "--help"], timeout=60)
        if said.status not in (126, 127):
            return place, checked_version(said.stdout + said.stderr)
    raise UnavailableError(
        f"no trtexec on {device.spec}: on JetPack it comes with 'sudo apt install libnvinfer-bin', elsewhere "
        "put NVIDIA's trtexec on the PATH"
    )


def build_on(device: Device, folder: Path, options: BuildOptions, progress: Progress) -> dict[str, Any]:
    """Upload `folder/model.onnx`, build there, fetch plan, log and layer information into `folder`.

    Returns facts for the report. InputError with trtexec's own error when the build fails.
    """
    program, version = find_trtexec(device)
    progress("uploading", 0.0)
    for name in (ONNX, f"{ONNX}.data"):
        if (folder / name).is_file():
            device.put(folder / name, name)
    plugins = _put_plugins(device, options.plugins)
    argv = build_argv(program, version, options, plugins=plugins)
    progress("building on the device", 0.1)
    done = device.run(argv, timeout=BUILD_SECONDS)
    log = done.stdout + done.stderr
    (folder / "build.log").write_text(log, encoding="utf-8")
    if done.status != 0:
        raise _failed_build(device, log, nodes_of(folder / ONNX))
    progress("fetching", 0.9)
    device.get(ENGINE, folder / ENGINE, limit=_LARGEST_PLAN)
    device.get(LAYERS, folder / "model.layers.json", limit=_LARGEST_JSON)
    plan = (folder / ENGINE).read_bytes()
    return {
        "builder": "trtexec",
        "version": dotted(version),
        "device": device.spec,
        "command": argv,
        "plan_bytes": len(plan),
        "plan_sha256": hashlib.sha256(plan).hexdigest(),
        "sparsity": sparsity_lines(log.splitlines()),
        "build_seconds": round(done.seconds, 3),
    }


def time_on(
    device: Device,
    plan: Path,
    *,
    shapes: dict[str, tuple[int, ...]] | None = None,
    graph: bool = False,
    iterations: int = 100,
    layers: bool = False,
) -> tuple[Times, list[LayerTime], dict[str, Any]]:
    """Run a plan there: raw samples, time per layer (empty unless asked), and the version and flags used."""
    program, version = find_trtexec(device)
    device.put(plan, ENGINE)
    argv = time_argv(program, version, shapes=shapes, graph=graph, iterations=iterations, layers=layers)
    _check(device, device.run(argv, timeout=RUN_SECONDS), "run the plan")
    times = parse_times(_fetched_text(device, TIMES, plan.parent))
    per_layer = parse_profile(_fetched_text(device, LAYER_TIMES, plan.parent)) if layers else []
    return times, per_layer, {"version": dotted(version), "command": argv, "device": device.spec}


def _put_plugins(device: Device, folder: str | None) -> list[str]:
    if folder is None:
        return []
    names = []
    for index, library in enumerate(sorted(Path(folder).glob("*.so"))):
        names.append(f"./plugin{index}.so")
        device.put(library, f"plugin{index}.so")
    return names


def _fetched_text(device: Device, name: str, folder: Path) -> str:
    fetched = folder / f".fetched-{name}"
    try:
        device.get(name, fetched, limit=_LARGEST_JSON)
        return fetched.read_text(encoding="utf-8")
    except UnicodeDecodeError as e:
        raise InputError(f"{name} from {device.spec} is not text: run it again") from e
    finally:
        fetched.unlink(missing_ok=True)


def _failed_build(device: Device, log: str, nodes: Nodes) -> InputError:
    where = one_line(device.spec, 80)
    refusal = build_failure(error_lines(log), nodes)
    return InputError(f"trtexec on {where} did not build the model: {refusal} (its log: build.log)")


def _check(device: Device, done: Completed, what: str) -> None:
    if done.status != 0:
        reason = failure_line(done.stdout + done.stderr)
        where = one_line(device.spec, 80)
        raise InputError(f"trtexec on {where} did not {what}: {reason}: build the plan again on that device")
