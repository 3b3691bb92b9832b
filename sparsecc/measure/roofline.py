"""The roofline of this machine (Williams, Waterman, Patterson 2009), and how far below it a layer stays."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sparsecc.runtime.kernel_census import CONVOLUTION_KERNELS, PRODUCT_KERNELS
from sparsecc.runtime.layer_times import shortest_kernels, traced_events
from sparsecc.runtime.runner import Feeds, LayerTime
from sparsecc.system.temp_folders import temporary_folder

_SIDE = 768
_ELEMENTS = 1 << 24
_RUNS = 8


@dataclass(frozen=True)
class Machine:
    """What the runtime reached here: 10^9 float32 operations a second, and 10^9 bytes a second."""

    gflops: float
    gbytes: float

    def least_ms(self, operations: float, moved: float) -> float:
        """The shortest time that the roofline allows."""
        return max(operations / self.gflops, moved / self.gbytes) / 1e6

    def to_json(self) -> dict[str, float]:
        return {"gflops": round(self.gflops, 3), "gbytes_per_second": round(self.gbytes, 3)}


@dataclass(frozen=True)
class Work:
    """Of one layer and run: floating-point operations, and bytes read and written once each."""

    operations: float
    moved: float


def measured_machine(threads: int = 1) -> Machine:
    """Peak of a large matrix product and bandwidth of a copy, the best of some runs."""
    product = _fastest("MatMul", (_SIDE, _SIDE), threads, weight=True)
    copy = _fastest("Relu", (_ELEMENTS,), threads, weight=False)
    return Machine(2 * _SIDE**3 / product / 1e6, 2 * 4 * _ELEMENTS / copy / 1e6)


def _fastest(op: str, shape: tuple[int, ...], threads: int, *, weight: bool) -> float:
    """Milliseconds of one operator's fastest run."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    values = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    weights = [numpy_helper.from_array(values, "w")] if weight else []
    node = helper.make_node(op, ["x", "w"] if weight else ["x"], ["y"])
    inputs, outputs = (
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape))] for name in ("x", "y")
    )
    graph = helper.make_graph([node], "peak", inputs, outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    with temporary_folder("scratch") as scratch:
        path = Path(scratch) / "peak.onnx"
        onnx.save(model, path)
        kernels = shortest_kernels(path, {"x": values}, threads=threads, runs=_RUNS)
    return max(1e-3, sum(kernel.microseconds for kernel in kernels if kernel.op_type == op) / 1e3)


def layer_work(path: Path, feeds: Feeds) -> dict[str, Work]:
    """Layer name -> its work, from the shapes in ONNX Runtime's trace of one run."""
    found: dict[str, Work] = {}
    for event in traced_events(path, feeds, threads=1, runs=1):
        name = str(event.get("name", ""))
        if event.get("cat") == "Node" and name.endswith("_kernel_time"):
            found[name.removesuffix("_kernel_time")] = _work(event.get("args", {}))
    return found


def _work(facts: Mapping[str, Any]) -> Work:
    inputs, outputs = (_shapes(facts.get(side)) for side in ("input_type_shape", "output_type_shape"))
    sizes = (facts.get(key, 0) for key in ("activation_size", "parameter_size", "output_size"))
    moved = math.fsum(float(size or 0) for size in sizes)
    return Work(_operations(str(facts.get("op_name", "")), inputs, outputs), moved)


def _operations(op: str, inputs: Sequence[Sequence[int]], outputs: Sequence[Sequence[int]]) -> float:
    """Two for each multiply-accumulate; one for each element that any other operator writes."""
    written = float(math.prod(outputs[0])) if outputs else 0.0
    if op in CONVOLUTION_KERNELS and len(inputs) > 1:
        return 2 * written * math.prod(inputs[1][1:])
    if op in PRODUCT_KERNELS and inputs and inputs[0]:
        return 2 * written * inputs[0][-1]
    return written


def _shapes(listed: Any) -> list[list[int]]:
    """[{"float": [1, 64, 8, 8]}] -> [[1, 64, 8, 8]]."""
    if not isinstance(listed, list):
        return []
    return [list(next(iter(one.values()), [])) for one in listed if isinstance(one, dict)]


def placed_under(
    layers: Sequence[LayerTime], work: Mapping[str, Work], machine: Machine
) -> list[dict[str, Any]]:
    """Each layer as plain data, with its operations, bytes, what bounds it, and its share of the roofline."""
    rows = []
    for layer in layers:
        row: dict[str, Any] = dict(layer.__dict__)
        done = work.get(layer.name)
        if done is not None and layer.microseconds > 0:
            least = machine.least_ms(done.operations, done.moved)
            bound = "compute" if done.operations / machine.gflops >= done.moved / machine.gbytes else "memory"
            row |= {"operations": done.operations, "bytes": done.moved, "bound": bound}
            row["of_roofline"] = round(least / (layer.microseconds / 1e3), 4)
        rows.append(row)
    return rows
