"""Times two ONNX models against each other on a device: one file, needing Python 3.8, numpy and onnxruntime.

    python3 runner.py REQUEST.json

The request names two models, their inputs (an .npz), how many pairs to time, threads, a seed, and a nonce.
The answer is one line of JSON on stdout: raw interleaved samples in nanoseconds, in the order taken, with
what the device tells about its clocks and temperature before and after.
"""

from __future__ import annotations

import glob
import json
import os
import platform
import random
import sys
import time
from typing import Any

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # before ONNX Runtime is loaded

SCHEMA = "sparsecc.samples/1"
LARGEST_STATE = 64


def read_state() -> dict[str, str]:
    """Governor, clock in kHz and temperature in millidegrees, by file; empty where the system hides them."""
    patterns = (
        "/sys/devices/system/cpu/cpu*/cpufreq/scaling_governor",
        "/sys/devices/system/cpu/cpu*/cpufreq/scaling_cur_freq",
        "/sys/class/thermal/thermal_zone*/temp",
    )
    state = {}
    for path in sorted(p for pattern in patterns for p in glob.glob(pattern))[:LARGEST_STATE]:
        try:
            with open(path) as file:
                state[path] = file.read(64).strip()
        except OSError:
            continue
    return state


def read_energy(folder: str = "/sys/class/powercap") -> dict[str, tuple[int, int]]:
    """Counter -> (microjoules so far, where it wraps) of every processor package; empty where it has none."""
    found = {}
    for name in sorted(glob.glob(folder + "/intel-rapl:[0-9]*")):
        if name.rsplit("/", 1)[1].count(":") > 1:
            continue  # a part of a package, counted in it
        try:
            with open(name + "/energy_uj") as file, open(name + "/max_energy_range_uj") as end:
                found[name] = int(file.read(64)), int(end.read(64))
        except (OSError, ValueError):
            continue
    return found


def energy_between(before: dict[str, tuple[int, int]], after: dict[str, tuple[int, int]]) -> int | None:
    """Microjoules between two readings of all counters; None without any. A counter may have wrapped once."""
    spent = {name: after[name][0] - used for name, (used, _) in before.items() if name in after}
    return sum(s if s >= 0 else s + before[name][1] for name, s in spent.items()) if spent else None


def open_session(path: str, threads: int) -> tuple[Any, list[str]]:
    """A session with `threads` threads and no spinning; (the session, the names of its inputs)."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return session, [value.name for value in session.get_inputs()]


def sample(sessions: Any, feeds: Any, pairs: int, seed: int) -> list[list[int]]:
    """`pairs` pairs in random order; each is [first is B, wall of A, CPU of A, wall of B, CPU of B]."""
    shuffled = random.Random(seed)
    rows = []
    for _ in range(pairs):
        b_first = shuffled.random() < 0.5
        row = [int(b_first), 0, 0, 0, 0]
        for which in (1, 0) if b_first else (0, 1):
            session, names = sessions[which]
            mine = {name: feeds[name] for name in names}
            cpu, wall = time.process_time_ns(), time.perf_counter_ns()
            session.run(None, mine)
            row[1 + 2 * which] = time.perf_counter_ns() - wall
            row[2 + 2 * which] = time.process_time_ns() - cpu
        rows.append(row)
    return rows


def main(arguments: list[str]) -> int:
    """Read the request, time, print the answer."""
    import numpy
    import onnxruntime

    with open(arguments[0]) as file:
        request = json.load(file)
    with numpy.load(request["feeds"], allow_pickle=False) as stored:
        feeds = {name: stored[name] for name in stored.files}
    sessions = [open_session(path, int(request["threads"])) for path in (request["a"], request["b"])]
    sample(sessions, feeds, int(request["warmup"]), 0)
    before, counters, began = read_state(), read_energy(), time.perf_counter_ns()
    rows = sample(sessions, feeds, int(request["pairs"]), int(request["seed"]))
    answer = {
        "schema": SCHEMA,
        "nonce": request["nonce"],
        "rows": rows,
        "elapsed_ns": time.perf_counter_ns() - began,
        "energy_uj": energy_between(counters, read_energy()),
        "machine": platform.machine(),
        "onnxruntime": onnxruntime.__version__,
        "before": before,
        "after": read_state(),
    }
    print(json.dumps(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
