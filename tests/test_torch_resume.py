"""A distillation that is killed goes on where it was, and ends where it would have ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'sparsecc[torch]'")

import sparsecc.torch as st  # noqa: E402
from sparsecc.system.cache import Cache  # noqa: E402
from sparsecc.torch.training.checkpoints import Checkpoints, key_of  # noqa: E402
from tests.test_torch_onnx import network  # noqa: E402

STEPS = 60
CODE = """
import sys, time
from pathlib import Path
from typing import Any
from sparsecc.torch.training import checkpoints, loop as training
from tests.test_torch_resume import train
checkpoints.EVERY = 0.0
step = training.Training._step
def slow(self, used):
    time.sleep(0.1)
    return step(self, used)
training.Training._step = slow
train(Path(sys.argv[1]))
"""


def train(folder: Path) -> dict[str, Any]:
    """The same training whenever it is called."""
    feeds = [{"x": np.random.default_rng(2).standard_normal((80, 6)).astype(np.float32)}]
    return st.distill(
        folder / "d.onnx",
        folder / "s.onnx",
        feeds,
        budget=f"steps:{STEPS}",
        batch=16,
        output=folder / "o.onnx",
    )


def saves(folder: Path) -> list[Path]:
    return [p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(".new")]


def weights(path: Path) -> dict[str, np.ndarray]:
    return {i.name: numpy_helper.to_array(i) for i in onnx.load(path).graph.initializer}


def test_a_killed_training_goes_on_and_ends_the_same(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    network(tmp_path / "d.onnx", 12, 0)
    network(tmp_path / "s.onnx", 9, 5)
    command = [sys.executable, "-c", CODE, str(tmp_path)]
    killed = subprocess.Popen(command, env={**os.environ, "XDG_CACHE_HOME": str(cache)}, cwd=root)
    deadline = time.monotonic() + 90
    while not saves(cache):
        assert killed.poll() is None, "it ended before it was killed"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.5)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not (tmp_path / "o.onnx").exists()
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    again = train(tmp_path)
    found = weights(tmp_path / "o.onnx")
    assert 0 < again["resumed_at"][0] < STEPS
    assert again["steps"] == STEPS
    assert not saves(cache), "a training that is done leaves nothing behind"
    whole = train(tmp_path)
    assert whole["resumed_at"] == []
    assert again["loss_after"] == whole["loss_after"] < again["loss_before"]
    assert all(np.array_equal(found[n], a) for n, a in weights(tmp_path / "o.onnx").items())


def test_the_key_holds_all_that_goes_in(tmp_path: Path) -> None:
    first, second = network(tmp_path / "a.onnx", 8, 0), network(tmp_path / "b.onnx", 8, 1)
    feeds = [{"x": np.zeros((2, 6), np.float32)}]
    key = key_of([first], feeds, {"seed": 0})
    assert key == key_of([first], feeds, {"seed": 0})
    others = (
        key_of([second], feeds, {"seed": 0}),
        key_of([first], [{"x": np.ones((2, 6), np.float32)}], {"seed": 0}),
        key_of([first], feeds, {"seed": 1}),
    )
    assert len({key, *others}) == 4


def test_saved_states_hold_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What lies in the cache is read as tensors alone: a pickle that would run something is refused."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    canary = tmp_path / "canary"

    class Payload:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (os.mkdir, (str(canary),))

    torch.save({"state": Payload()}, tmp_path / "payload")
    Cache().put("k", (tmp_path / "payload").read_bytes())
    assert Checkpoints("k", torch.device("cpu")).load() is None
    assert not canary.exists()
