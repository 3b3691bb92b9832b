"""The compiled plan timed beside one of the dense model, built for it alone: on the GPU here, or on a device."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from sparsecc.backends.nvidia.build import build_plan
from sparsecc.backends.nvidia.engine import TensorrtEngine, save_onnx
from sparsecc.backends.nvidia.layer_profile import dynamic_inputs
from sparsecc.backends.nvidia.options import BuildOptions
from sparsecc.backends.nvidia.remote import build_on, time_on
from sparsecc.backends.nvidia.run import EngineRunner, open_plan
from sparsecc.backends.nvidia.trtexec import ENGINE, ONNX
from sparsecc.devices import Device, open_device
from sparsecc.measure.interleave import Comparison
from sparsecc.passes.prepare_tensorrt import prepare
from sparsecc.runtime.runner import Feeds

PAIRS = 120
WARM_UPS = 10
ROUNDS = 4
"""How often both plans are started anew on a device, in alternating order."""


def compare_plans(
    backend: TensorrtEngine,
    dense: ir.Model,
    plan: Path,
    feeds: tuple[Feeds, Feeds],
    options: Mapping[str, Any],
    scratch: Path,
    *,
    seed: int = 0,
) -> Comparison:
    """GPU milliseconds of a dense model (which is edited) and of the plan of a bundle just built.

    `feeds` are the inputs of each, `options` those of the build: the dense plan gets the same. Raises what
    building and running raise; SparseccError where the dense model does not build.
    """
    chosen = replace(BuildOptions.from_mapping(options), refit=False, stripped=False, sparse_weights=False)
    scratch.mkdir(parents=True, exist_ok=True)
    prepare(dense)
    save_onnx(dense, scratch)
    if backend.uses_trtexec(chosen):
        with open_device(chosen.device) as device:
            build_on(device, scratch, chosen, lambda what, share: None)
            return _on_device(device, (scratch / ENGINE, plan), feeds, seed)
    build_plan(backend.flavour, scratch / ONNX, scratch / ENGINE, chosen, lambda what, share: None)
    runners: list[EngineRunner] = []
    try:
        for path in (scratch / ENGINE, plan):
            runners.append(open_plan(backend.flavour, path))
        return interleaved((runners[0], runners[1]), feeds, seed=seed)
    finally:
        for runner in runners:
            runner.close()


def interleaved(
    runners: tuple[EngineRunner, EngineRunner],
    feeds: tuple[Feeds, Feeds],
    *,
    pairs: int = PAIRS,
    seed: int = 0,
) -> Comparison:
    """Pairs in random order, by CUDA events, inputs already on the GPU."""
    steps = [runner.step(given) for runner, given in zip(runners, feeds, strict=True)]
    order = random.Random(seed)
    times = np.empty((2, pairs))
    for number in range(-WARM_UPS, pairs):
        for side in (0, 1) if order.random() < 0.5 else (1, 0):
            measured = runners[side].milliseconds(steps[side])
            if number >= 0:
                times[side, number] = measured
    return _comparison(times[0], times[1], seed, {})


def _on_device(device: Device, plans: tuple[Path, Path], feeds: tuple[Feeds, Feeds], seed: int) -> Comparison:
    """Both plans run by trtexec in rounds; each start is a process of its own."""
    total: Comparison | None = None
    for number in range(ROUNDS):
        found: dict[int, Sequence[float]] = {}
        for side in (0, 1) if number % 2 == 0 else (1, 0):
            shapes = {n: feeds[side][n].shape for n in dynamic_inputs(plans[side].with_name(ONNX))}
            times, _, how = time_on(device, plans[side], shapes=shapes, iterations=PAIRS // ROUNDS)
            found[side] = times.compute
        pairs = min(len(found[0]), len(found[1]))
        extra = {"device": {"name": device.spec, "trtexec": how["version"]}}
        part = _comparison(np.asarray(found[0][:pairs]), np.asarray(found[1][:pairs]), seed, extra)
        total = part if total is None else total.joined(part)
    assert total is not None
    return total


def _comparison(before: np.ndarray, after: np.ndarray, seed: int, extra: dict[str, Any]) -> Comparison:
    """The GPU has one clock: its own."""
    return Comparison(before, after, before, after, "gpu", 1, 1, seed, extra)
