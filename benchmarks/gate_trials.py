"""How often the latency gate is wrong: A/A and A/B trials under load, with a known true change.

    python benchmarks/gate_trials.py --trials 100 --load 8 -o gate_trials.json

The models are stacks of equal MatMuls, so a stack of 27 does 8 % more work than one of 25. A trial is right
when A/A is not called a regression and +8 % is not called OK.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from sparsecc.gate.gate import gate
from sparsecc.measure.interleave import Budget

WIDTH = 192
ROWS = 64
LAYERS = {"+0 %": (25, 25), "+5 %": (20, 21), "+8 %": (25, 27)}
"""Name -> layers of the baseline and of the current model."""


def stack(layers: int, path: Path) -> Path:
    """A model of `layers` MatMuls, each (64 x 192) by (192 x 192), with equal cost."""
    generator = np.random.default_rng(0)
    weights = [generator.standard_normal((WIDTH, WIDTH)).astype(np.float32) / 14 for _ in range(layers)]
    names = ["x", *(f"h{index}" for index in range(layers - 1)), "y"]
    nodes = [
        helper.make_node("MatMul", [names[index], f"w{index}"], [names[index + 1]]) for index in range(layers)
    ]
    graph = helper.make_graph(
        nodes,
        "stack",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [ROWS, WIDTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [ROWS, WIDTH])],
        [numpy_helper.from_array(weight, f"w{index}") for index, weight in enumerate(weights)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, path)
    return path


def spin(_: int) -> None:
    """Keep a core and its cache busy until killed."""
    block = np.random.default_rng(0).standard_normal((300, 300))
    while True:
        block = block @ block
        block /= np.abs(block).max()


@contextmanager
def load(processes: int) -> Iterator[None]:
    """That many busy processes for the time of the block."""
    context = multiprocessing.get_context("spawn")
    spinning = [context.Process(target=spin, args=(index,), daemon=True) for index in range(processes)]
    for process in spinning:
        process.start()
    try:
        if spinning:
            time.sleep(2.0)
        yield
    finally:
        for process in spinning:
            process.terminate()
            process.join()


def run_trials(options: argparse.Namespace, folder: Path) -> None:
    """Write, after every trial: per true change the verdicts, each trial's estimate, interval and seconds."""
    models = {n: stack(n, folder / f"stack{n}.onnx") for pair in LAYERS.values() for n in pair}
    trials: dict[str, list[dict[str, Any]]] = {name: [] for name in LAYERS}
    with load(options.load):
        for number in range(options.trials):
            for name, (before, now) in LAYERS.items():
                trials[name].append(one_trial(models[now], models[before], options, number))
            write(options, trials)
            print(f"trial {number + 1} of {options.trials}", file=sys.stderr)
    for name, entries in trials.items():
        print(f"{name}: {dict(Counter(entry['verdict'] for entry in entries))}")


def one_trial(now: Path, before: Path, options: argparse.Namespace, number: int) -> dict[str, Any]:
    """One run of the gate."""
    start = time.perf_counter()
    result = gate(
        now,
        before,
        max_regression=options.max_regression,
        checks=(),
        budget=Budget(pairs=options.pairs, seconds=options.seconds),
        seed=options.seed + number,
    )
    facts = {"verdict": result.verdict, "change": result.change, "reason": result.reason}
    return {**facts, "load_average": os.getloadavg()[0], "seconds": round(time.perf_counter() - start, 1)}


def write(options: argparse.Namespace, trials: dict[str, list[dict[str, Any]]]) -> None:
    """The trials so far, as JSON."""
    facts = {"load": options.load, "max_regression": options.max_regression, "cores": os.cpu_count()}
    results = {
        name: {
            "true_work": LAYERS[name][1] / LAYERS[name][0] - 1,
            "verdicts": dict(Counter(entry["verdict"] for entry in entries)),
            "trials": entries,
        }
        for name, entries in trials.items()
    }
    options.output.write_text(json.dumps({**facts, "results": results}, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description="A/A and A/B trials of the latency gate under load.")
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--load", type=int, default=8, help="busy processes beside the measurement")
    parser.add_argument("--max-regression", type=float, default=0.05)
    parser.add_argument("--pairs", type=int, default=160)
    parser.add_argument("--seconds", type=float, default=12.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", type=Path, default=Path("gate_trials.json"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        run_trials(options, Path(scratch))


if __name__ == "__main__":
    main()
