"""`sparsecc profile` with ONNX Runtime on a CPU: latency, and here memory, kernels and layers under the roofline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sparsecc.errors import InputError
from sparsecc.measure.footprint import footprint
from sparsecc.measure.pair import time_on
from sparsecc.measure.roofline import layer_work, measured_machine, placed_under
from sparsecc.measure.statistics import Percentiles
from sparsecc.runtime.kernel_census import census
from sparsecc.runtime.layer_times import layer_times
from sparsecc.runtime.runner import Feeds, Progress
from sparsecc.system.machine import device as this_machine


def latency(
    path: Path, feeds: Feeds, *, device: str, threads: int, layers: bool, progress: Progress
) -> dict[str, Any]:
    """CPU and wall milliseconds per run with their percentiles, and on this machine what needs no clock elsewhere.

    InputError for layers on a device: they are timed on this machine only.
    """
    if layers and device != "local":
        raise InputError(f"--layers is measured on this machine only: leave it out for {device}")
    cpu, wall, facts = time_on(device, path, feeds, threads=threads)
    energy = {"energy_mj": facts.pop("energy_mj")} if "energy_mj" in facts else {}
    found: dict[str, Any] = {
        "device": this_machine() if device == "local" else facts,
        "cpu_ms": Percentiles.of(cpu).to_json(),
        "wall_ms": Percentiles.of(wall).to_json(),
        "samples_ms": {"cpu": [float(t) for t in cpu], "wall": [float(t) for t in wall]},
        "layers": [],
        **energy,
    }
    if device == "local":
        found["footprint"] = footprint(path, feeds, threads=threads).to_json()
        found["census"] = census(path)
    if layers:
        progress("layers", 0.7)
        machine = measured_machine(threads)
        times = layer_times(path, feeds, threads=threads)
        found["roofline"] = machine.to_json()
        found["layers"] = placed_under(times, layer_work(path, feeds), machine)
    return found
