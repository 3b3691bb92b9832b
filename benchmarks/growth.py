"""What a compile costs itself: CPU seconds of every stage as models grow, beside tools that prove nothing.

    python benchmarks/growth.py [--nodes 1000 10000 50000] [--megabytes 10 100 400] [--peers onnxslim onnxsim]
                                [--models FILE ...] [--rounds 1] [--json FILE]

A row is a process of its own. Chains and fans (`tests/test_growth.py`) grow in nodes, a stack of linear layers in
bytes; `growth` is the exponent between the last two sizes: 1 is in proportion, 2 the square. `--models` are compiled
and handed to the peers in turn, round after round; a peer that is not installed is left out.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from sparsecc.system.process import THREADS_OF_BLAS

ROOT = Path(__file__).resolve().parents[1]
OPTIONS = {"ratio": 0.5, "criterion": "lamp", "allocator": "global", "measure": False}
"""One choice by weights, without trials of others, and no clock: what is left is the compiler."""
LEAST = 0.2
"""CPU seconds of a stage below which no exponent is told."""
WIDTH = 1024


def linear(megabytes: int) -> onnx.ModelProto:
    """Linear layers of 4 MiB with a Relu behind each."""
    generator, layers = np.random.default_rng(0), max(2, megabytes // 4)
    nodes, weights = [], []
    for i in range(layers):
        array = generator.standard_normal((WIDTH, WIDTH), dtype=np.float32) * np.float32((2 / WIDTH) ** 0.5)
        weights.append(numpy_helper.from_array(array, f"w{i}"))
        nodes.append(helper.make_node("MatMul", [f"v{i}", f"w{i}"], [f"m{i}"], name=f"layer{i}"))
        nodes.append(helper.make_node("Relu", [f"m{i}"], [f"v{i + 1}"], name=f"relu{i}"))
    ends = [helper.make_tensor_value_info(v, TensorProto.FLOAT, ["n", WIDTH]) for v in ("v0", f"v{layers}")]
    graph = helper.make_graph(nodes, "linear", ends[:1], ends[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def compile_row(model: Path) -> dict[str, Any]:
    """CPU seconds by stage, in all, and the largest resident memory."""
    from sparsecc.tasks.compile import compile_model

    marks: list[tuple[str, float]] = []

    def note(event: dict[str, Any]) -> None:
        if not marks or marks[-1][0] != event["stage"]:
            marks.append((str(event["stage"]), time.process_time()))

    with tempfile.TemporaryDirectory() as folder:
        request = {"model": str(model), "output": f"{folder}/out", "options": OPTIONS}
        status = compile_model(request, note)["report"]["verification"]["status"]
    stages: dict[str, float] = {}
    for (name, begun), (_, ended) in zip(marks, [*marks[1:], ("", time.process_time())], strict=True):
        stages[name] = round(stages.get(name, 0.0) + ended - begun, 2)
    return {"stages": stages, "status": status}


def peer_row(name: str, model: Path) -> dict[str, Any]:
    """What a simplifier takes from file to file."""
    with tempfile.TemporaryDirectory() as folder:
        out = f"{folder}/out.onnx"
        if name == "onnxslim":
            importlib.import_module("onnxslim").slim(str(model), out)
        else:
            simplified, _ = importlib.import_module("onnxsim").simplify(str(model))
            onnx.save(simplified, out)
    return {}


def row(tool: str, model: Path) -> dict[str, Any]:
    """CPU seconds of a whole process, its start with it, and its largest resident memory."""
    found = compile_row(model) if tool == "sparsecc" else peer_row(tool, model)
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {**found, "cpu": round(used.ru_utime + used.ru_stime, 2), "peak_mb": peak_mb()}


def peak_mb() -> int:
    """The largest resident memory of this process; `ru_maxrss` would count what its parent held when it began."""
    status = Path("/proc/self/status").read_text("ascii").splitlines()
    return next(int(line.split()[1]) >> 10 for line in status if line.startswith("VmHWM:"))


def alone(tool: str, model: Path) -> dict[str, Any]:
    """A row in a process of its own."""
    command = [sys.executable, __file__, "--row", tool, "--models", str(model)]
    env = {**os.environ, **THREADS_OF_BLAS}  # as workers run: threads that wait for each other cost time too
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True, env=env)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def growth(sizes: list[int], rows: list[dict[str, Any]]) -> dict[str, float]:
    """Stage -> exponent between the last two sizes, of stages that take long enough."""
    if len(rows) < 2:
        return {}
    (small, large), factor = rows[-2:], math.log(sizes[-1] / sizes[-2])
    pairs = {name: (small["stages"].get(name, 0.0), seconds) for name, seconds in large["stages"].items()}
    pairs["cpu"] = small["cpu"], large["cpu"]
    return {n: round(math.log(b / a) / factor, 2) for n, (a, b) in pairs.items() if a > 0 and b >= LEAST}


def grown(name: str, make: Callable[[int], onnx.ModelProto], sizes: list[int]) -> dict[str, Any]:
    """A kind of model at all sizes."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for size in sizes:
            onnx.save(make(size), f"{folder}/m.onnx")
            rows.append(alone("sparsecc", Path(folder) / "m.onnx"))
            print(name, size, rows[-1], flush=True)
    found = {"sizes": sizes, "rows": rows, "growth": growth(sizes, rows)}
    print(name, "growth", found["growth"], flush=True)
    return found


def main() -> None:
    """Print what was measured, row by row."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--nodes", type=int, nargs="*", default=[1000, 10_000, 50_000])
    parser.add_argument("--megabytes", type=int, nargs="*", default=[10, 100, 400])
    parser.add_argument("--peers", nargs="*", default=["onnxslim", "onnxsim"])
    parser.add_argument("--models", type=Path, nargs="*", default=[])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--row")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    if given.row:
        print(json.dumps(row(given.row, given.models[0])))
        return
    from tests.test_growth import chain, fan

    found: dict[str, Any] = {}
    if given.nodes:
        found["chain"] = grown("chain", chain, given.nodes)
        found["fan"] = grown("fan", fan, [min(size, 20_000) for size in given.nodes])
    if given.megabytes:
        found["bytes"] = grown("bytes", linear, given.megabytes)
    tools = ["sparsecc", *(peer for peer in given.peers if importlib.util.find_spec(peer))]
    for _ in range(given.rounds):
        for model in given.models:
            for tool in tools:
                made = alone(tool, model)
                found.setdefault("models", []).append({"model": model.name, "tool": tool, **made})
                print(model.name, tool, made, flush=True)
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
