"""A compiled plan beside a dense one: pairs by events on a stand-in driver, rounds on a stand-in board."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from sparsecc.backends.nvidia.compare import PAIRS, ROUNDS, WARM_UPS, interleaved
from tests.sshd import Server
from tests.tensorrt_graphs import conv_residual
from tests.trtexec_stand_in import home_for


class Timed:
    """A runner whose runs take a known time, and that notes when each was."""

    def __init__(self, milliseconds: float, log: list[float]) -> None:
        self.takes, self.log = milliseconds, log
        self.fed: Any = None

    def step(self, feeds: Any) -> str:
        self.fed = feeds
        return "step"

    def milliseconds(self, step: str) -> float:
        assert step == "step"
        self.log.append(self.takes)
        return self.takes


def test_pairs_are_taken_in_random_order_after_warming_up() -> None:
    log: list[float] = []
    dense, small = Timed(4.0, log), Timed(2.0, log)
    runners: Any = (dense, small)
    told = interleaved(runners, ({"x": np.ones(2)}, {"x": np.ones(1)}), seed=3)
    assert len(log) == 2 * (PAIRS + WARM_UPS)
    firsts = log[::2]
    assert 0.3 < firsts.count(4.0) / len(firsts) < 0.7
    assert dense.fed["x"].size == 2
    assert small.fed["x"].size == 1
    found = told.to_json()
    assert found["clock"] == "gpu"
    assert found["speedup"]["estimate"] == 2.0
    assert (found["before_ms"]["p50"], found["after_ms"]["p50"]) == (4.0, 2.0)
    assert set(found["samples_ms"]) == {"gpu_before", "gpu_after"}
    assert "cpu" not in found


def test_a_compile_for_a_board_is_timed_there(board: Server, tmp_path: Path) -> None:
    """Builds the dense model there, too, and runs both in rounds; the stand-in's times are all alike."""
    _, environment = home_for(board, tmp_path / "home")
    onnx.save(conv_residual(), tmp_path / "model.onnx")
    command = ["compile", "model.onnx", "--target", "tensorrt", "--ratio", "0", "--align", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "sparsecc", *command, "--device", board.spec, "-o", "out", "--json"],
        cwd=tmp_path, env=os.environ | environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    latency = json.loads(done.stdout)["latency"]
    assert latency["clock"] == "gpu"
    assert latency["rounds"] == ROUNDS
    assert latency["device"]["name"] == board.spec
    assert latency["speedup"]["ci95"][0] <= 1 <= latency["speedup"]["ci95"][1]
    assert "GPU" in (tmp_path / "out" / "report.html").read_text()
    assert not [path for path in board.folder.iterdir() if path.name.startswith("tmp.")]
