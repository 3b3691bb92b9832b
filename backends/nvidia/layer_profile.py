"""The latency of a bundle's plan: on the GPU here, or with trtexec on a device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from sparsecc.backends.nvidia.engine import LAYERS, TensorrtEngine
from sparsecc.backends.nvidia.engine_inspector import parse_layers
from sparsecc.backends.nvidia.plans import read_vouched
from sparsecc.backends.nvidia.remote import time_on
from sparsecc.backends.nvidia.run import EngineRunner
from sparsecc.backends.nvidia.trtexec import ENGINE, ONNX
from sparsecc.devices import open_device
from sparsecc.errors import InputError
from sparsecc.escaping import quoted
from sparsecc.measure.statistics import Percentiles
from sparsecc.runtime.runner import Feeds, LayerTime

RUNS = 100
LAYER_RUNS = 20


def profile_plan(
    backend: TensorrtEngine, bundle: Path, feeds: Feeds, *, device: str = "local", layers: bool = False
) -> dict[str, Any]:
    """Raw times in milliseconds with their percentiles, and per layer where asked.

    `device` is `local` or `ssh://…`, where trtexec runs the plan. InputError where the bundle has no plan or
    nothing vouches for it, UnavailableError where nothing can run it.
    """
    plan = bundle / ENGINE
    if not plan.is_file():
        raise InputError(
            f"{quoted(str(bundle))} holds no {ENGINE}: give the folder of a compile, or build it first"
        )
    measured = (
        _on_device(device, plan, feeds, layers) if device != "local" else _here(backend, plan, feeds, layers)
    )
    times, per_layer, where = measured
    return {
        "gpu_ms": Percentiles.of(np.asarray(times, np.float64)).to_json(),
        "samples_ms": {"gpu": list(times)},
        "layers": _with_types(per_layer, plan.with_name(LAYERS)),
        "device": where,
    }


Measured = tuple[list[float], list[LayerTime], dict[str, Any]]


def _here(backend: TensorrtEngine, plan: Path, feeds: Feeds, layers: bool) -> Measured:
    runner = backend.load(plan)
    assert isinstance(runner, EngineRunner)
    try:
        times = runner.times(feeds, runs=RUNS)
        per_layer = runner.layers(feeds, runs=LAYER_RUNS) if layers else []
    finally:
        runner.close()
    return times, per_layer, {"name": "local"}


def _on_device(spec: str, plan: Path, feeds: Feeds, layers: bool) -> Measured:
    read_vouched(plan, spec)
    shapes = {name: feeds[name].shape for name in dynamic_inputs(plan.with_name(ONNX))}
    with open_device(spec) as device:
        times, per_layer, how = time_on(device, plan, shapes=shapes, iterations=RUNS, layers=layers)
    command = " ".join(how["command"])
    return (
        list(times.compute),
        per_layer,
        {"name": how["device"], "trtexec": how["version"], "command": command},
    )


def dynamic_inputs(onnx: Path) -> list[str]:
    """trtexec refuses shapes for inputs that have only one."""
    return [
        value.name or ""
        for value in ir.load(onnx).graph.inputs
        if value.shape is not None and not all(isinstance(size, int) for size in value.shape)
    ]


def _with_types(times: list[LayerTime], information: Path) -> list[dict[str, Any]]:
    """The layers with kind and type from the inspector's information, where the bundle has it."""
    text = information.read_text(encoding="utf-8") if information.is_file() else '{"Layers": []}'
    known = {layer.name: layer for layer in parse_layers(text)}
    return [asdict(time) | _kind(time, known) for time in times]


def _kind(time: LayerTime, known: Mapping[str, Any]) -> dict[str, str]:
    layer = known.get(time.name)
    return {"op_type": layer.kind, "type": layer.type} if layer is not None else {}
