"""Time and memory of calibration and repair: a ResNet-50-sized network, a transformer of 0.5 billion parameters.

    python benchmarks/calibration.py [--cases resnet50 decoder] [--samples 256] [--memory 2GiB] [--json FILE]
    python benchmarks/calibration.py --cases decoder --samples 16 --json benchmarks/results/calibration.json

The file keeps the rows of other cases and steps. A sample of the decoder is a text of 64 tokens. Weights are random:
what is measured is time and memory alone. Each step runs in a process of its own whose peak is the largest resident
memory that the system saw. A second collection shows what the cache saves.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from sparsecc.calibrate.layer_statistics import collect
from sparsecc.compilation import Compilation
from sparsecc.data.samples import Samples
from sparsecc.graph.analysis import analyse
from sparsecc.graph.groups import find_groups
from sparsecc.graph.rewrite import remove
from sparsecc.loading.models import load_ir
from sparsecc.loading.normalise import normalise
from sparsecc.options import CompileOptions
from sparsecc.options.reading import size
from sparsecc.reconstruct.layerwise import repair
from sparsecc.reconstruct.stage import kept_values
from sparsecc.system.process import THREADS_OF_BLAS
from sparsecc.system.scratch import Scratch

TOKENS, WIDTH, INNER, LAYERS, WORDS = 64, 896, 4864, 24, 151936
STAGES = ((64, 3), (128, 4), (256, 6), (512, 3))


class Builder:
    """A graph that grows node by node; its weights go to external data as they are drawn."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "model.onnx"
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.random = np.random.default_rng(0)

    def weight(self, *shape: int, fan: int) -> str:
        array = self.random.standard_normal(shape, dtype=np.float32) / np.float32(np.sqrt(fan))
        name, data = f"w{len(self.weights)}", self.path.with_name("model.onnx.data")
        tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=shape)
        tensor.data_location = TensorProto.EXTERNAL
        place = {
            "location": data.name,
            "offset": data.stat().st_size if data.exists() else 0,
            "length": array.nbytes,
        }
        for key, value in place.items():
            tensor.external_data.add(key=key, value=str(value))
        with data.open("ab") as file:
            array.tofile(file)
        self.weights.append(tensor)
        return name

    def add(self, op: str, *inputs: str, **attributes: Any) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], name=f"{op}_{len(self.nodes)}", **attributes))
        return name

    def save(self, shape: list[Any], kind: int, output: str) -> Path:
        given = helper.make_tensor_value_info("x", kind, shape)
        graph = helper.make_graph(
            self.nodes, "g", [given], [helper.make_tensor_value_info(output, 1, None)], self.weights
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
        onnx.save(model, self.path)
        return self.path


def resnet50(folder: Path) -> Path:
    """The sizes of ResNet-50, batch norms folded."""
    b = Builder(folder)

    def conv(x: str, before: int, after: int, kernel: int, stride: int = 1) -> str:
        weight = b.weight(after, before, kernel, kernel, fan=before * kernel * kernel)
        return b.add("Conv", x, weight, pads=[kernel // 2] * 4, strides=[stride] * 2)

    x = b.add("Relu", conv("x", 3, 64, 7, 2))
    x = b.add("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    last = 64
    for stage, (width, blocks) in enumerate(STAGES):
        for block in range(blocks):
            stride = 2 if block == 0 and stage else 1
            y = b.add("Relu", conv(x, last, width, 1))
            y = b.add("Relu", conv(y, width, width, 3, stride))
            y = conv(y, width, 4 * width, 1)
            skip = conv(x, last, 4 * width, 1, stride) if block == 0 else x
            x, last = b.add("Relu", b.add("Add", y, skip)), 4 * width
    x = b.add("Flatten", b.add("GlobalAveragePool", x))
    return b.save(["n", 3, 224, 224], TensorProto.FLOAT, b.add("MatMul", x, b.weight(last, 1000, fan=last)))


def decoder(folder: Path) -> Path:
    """The sizes of a transformer of 0.5 billion parameters; attention is left to its projections."""
    b = Builder(folder)
    x = b.add("Gather", b.weight(WORDS, WIDTH, fan=1), "x")
    for _ in range(LAYERS):
        y = b.add("MatMul", x, b.weight(WIDTH, WIDTH, fan=WIDTH))
        x = b.add("Add", x, b.add("MatMul", b.add("Tanh", y), b.weight(WIDTH, WIDTH, fan=WIDTH)))
        gate = b.add("Sigmoid", b.add("MatMul", x, b.weight(WIDTH, INNER, fan=WIDTH)))
        y = b.add("Mul", gate, b.add("MatMul", x, b.weight(WIDTH, INNER, fan=WIDTH)))
        x = b.add("Add", x, b.add("MatMul", y, b.weight(INNER, WIDTH, fan=INNER)))
    return b.save(["n", TOKENS], TensorProto.INT64, b.add("MatMul", x, b.weight(WIDTH, WORDS, fan=WIDTH)))


CASES = {"resnet50": resnet50, "decoder": decoder}


def samples_of(case: str, number: int) -> Samples:
    random = np.random.default_rng(1)
    batches = []
    for start in range(0, number, 32):
        n = min(32, number - start)
        image = random.standard_normal((n, 3, 224, 224), dtype=np.float32)
        batches.append({"x": image if case == "resnet50" else random.integers(0, WORDS, (n, TOKENS))})
    return Samples(tuple(batches), True)


def step(case: str, what: str, path: Path, number: int, memory: int) -> dict[str, Any]:
    """One step in this process: its seconds by the clock and of processors, and peak memory."""
    analysis, samples = analyse(normalise(load_ir(path))), samples_of(case, number)
    begun, used = time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory() as scratch:
        if what == "repair":
            free = [g for g in find_groups(analysis) if g.is_free]
            keep = {g.atom: np.arange(g.size) % 4 != 0 for g in free}
            kept = kept_values(analysis, keep)
            remove(analysis, keep)
            options = CompileOptions(working_memory=memory)
            compilation, dense = Compilation(path, options, Scratch(Path(scratch))), normalise(load_ir(path))
            mended = repair(compilation, dense, analysis.model, kept, samples, "reconstruct")
            found: dict[str, Any] = {"layers": len(mended.layers)}
        else:
            found = collect(analysis, samples, Path(scratch), memory=memory).facts
    seconds, cpu = round(time.perf_counter() - begun, 1), round(time.process_time() - used, 1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return {
        "step": what,
        "seconds": seconds,
        "cpu_seconds": cpu,
        "peak_mb": peak,
        **{k: found[k] for k in ("source", "bytes", "layers") if k in found},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--memory", type=size, default="2GiB")
    parser.add_argument("--steps", nargs="+", default=["collect", "again", "repair"])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--step", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.step:
        what, path = given.step
        print(json.dumps(step(given.cases[0], what, Path(path), given.samples, given.memory)))
        return
    stored = given.json is not None and given.json.exists()
    results: dict[str, Any] = json.loads(given.json.read_text()) if stored else {}
    for case in given.cases:
        with tempfile.TemporaryDirectory() as folder:
            path = CASES[case](Path(folder))
            for what in given.steps:
                words = [sys.executable, __file__, "--cases", case, "--samples", str(given.samples)]
                words += ["--memory", str(given.memory), "--step", what, str(path)]
                env = {**os.environ, **THREADS_OF_BLAS, "XDG_CACHE_HOME": folder}  # as workers run
                done = subprocess.run(words, capture_output=True, text=True, check=True, env=env)
                row = {"samples": given.samples, "memory": given.memory, **json.loads(done.stdout)}
                others = [other for other in results.get(case, []) if other["step"] != what]
                results[case] = [*others, row]
                print(case, row, flush=True)
                if given.json:
                    given.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
