"""The table of a device: what it makes of layers in each type, measured by compiling small models for it."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from sparsecc.cost.device_rates import FLOAT, SCHEMA, SPARSE, DeviceRates
from sparsecc.errors import InputError, SparseccError
from sparsecc.system.files import replace_whole
from sparsecc.system.temp_folders import temporary_folder
from sparsecc.targets import Target, target_named

LAYERS = 6
SIDES = {"cpu": (128, 28), "gpu": (256, 56)}
"""(channels, height and width) of the convolutions that show the rate of a type, by the kind of device; others take a
processor's."""
WIDTH, SMALL = 2048, 16
"""Of the products whose weights show the memory, and of those that show what a kernel takes."""


def device_table(output: Path, target: str, device: str, threads: int) -> dict[str, Any]:
    """Measure, and write to `output`. UnavailableError where the target does not run on the device."""
    asked = target_named(target)
    if not output.parent.is_dir():
        raise InputError(f"{output.parent}: no such folder: make it, or name another file with -o")
    with temporary_folder("input") as folder:
        launch = _seconds(_products(SMALL, 1), folder, asked, device, threads)[FLOAT] / LAYERS
        heavy, (channels, side) = (
            _seconds(_products(WIDTH, 1), folder, asked, device, threads),
            SIDES.get(asked.device, SIDES["cpu"]),
        )
        convolved = _seconds(_convolutions(channels, side), folder, asked, device, threads)
    macs = LAYERS * 9 * channels**2 * side**2
    weights = LAYERS * WIDTH**2 * 4
    rates = DeviceRates(
        "",
        {kind: macs / max(seconds - LAYERS * launch, seconds / 10) for kind, seconds in convolved.items()},
        weights / max(heavy[FLOAT] - LAYERS * launch, heavy[FLOAT] / 10),
        launch,
    )
    found = {"schema": SCHEMA, "target": asked.name, "device": device, **rates.to_json()}
    replace_whole(output, json.dumps(found, indent=1).encode() + b"\n")
    return {**found, "output": str(output)}


def _seconds(
    model: onnx.ModelProto, folder: Path, target: Target, device: str, threads: int
) -> dict[str, float]:
    """Type -> seconds of a run, with 2:4 too where the target has kernels for it; types that it cannot give the
    model are left out. What it says of the last one where it can give none."""
    from sparsecc.api import compile as compile_for

    path, found = folder / "model.onnx", dict[str, float]()
    refused: SparseccError = InputError(
        f"{target.name} has neither fp16 nor int8: there is no table to make of it"
    )
    onnx.save(model, path)
    where: dict[str, Any] = {"target": target.name, "device": device, "threads": threads, "next_steps": False}
    patterns = (None, "2:4") if "2:4" in target.patterns else (None,)
    for kind, pattern in itertools.product(("fp16", "int8"), patterns):
        if kind not in target.types:
            continue
        how: dict[str, Any] = {
            "quantize": "int8!" if kind == "int8" else kind,
            "sparsity": pattern,
            "calib": "synthetic",
        }
        try:
            made = compile_for(path, **where, **how, output=folder / "made", force=True)
        except SparseccError as e:
            refused = e
            continue
        latency = made.report["latency"]
        before = latency["before_ms"]["p50"] / 1e3
        name = f"{kind}{SPARSE if pattern else ''}"
        found |= {FLOAT: found.get(FLOAT, before), name: before / latency["speedup"]["estimate"]}
    if not found:
        raise refused
    return found


def _convolutions(channels: int, side: int) -> onnx.ModelProto:
    shape = (channels, channels, 3, 3)
    nodes = [
        helper.make_node("Conv", [f"x{i}", f"w{i}"], [f"y{i}"], f"layer{i}", pads=[1, 1, 1, 1])
        for i in range(LAYERS)
    ]
    return _chain(nodes, shape, [1, channels, side, side])


def _products(width: int, rows: int) -> onnx.ModelProto:
    nodes = [helper.make_node("MatMul", [f"x{i}", f"w{i}"], [f"y{i}"], f"layer{i}") for i in range(LAYERS)]
    return _chain(nodes, (width, width), [rows, width])


def _chain(nodes: list[onnx.NodeProto], shape: tuple[int, ...], size: list[int]) -> onnx.ModelProto:
    """These layers behind one another, a Relu after each."""
    draw = np.random.default_rng(0)
    scale = np.sqrt(2 / np.prod(shape[1:]))
    weights = [
        numpy_helper.from_array((draw.standard_normal(shape) * scale).astype(np.float32), f"w{i}")
        for i in range(len(nodes))
    ]
    relus = [helper.make_node("Relu", [f"y{i}"], [f"x{i + 1}"], f"relu{i}") for i in range(len(nodes))]
    ends = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, size) for name in ("x0", f"x{len(nodes)}")
    ]
    chained = [node for pair in zip(nodes, relus, strict=True) for node in pair]
    graph = helper.make_graph(chained, "layers", ends[:1], ends[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
