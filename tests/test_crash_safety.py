"""A compile that is killed, runs out of disk or races another one leaves a complete bundle or nothing, and
the next compile succeeds and sweeps what is left."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import sparsecc
from sparsecc.bundle.folder import Bundle
from sparsecc.errors import InputError, SystemFailureError
from sparsecc.worker import Worker

MODELS = Path(__file__).resolve().parents[1] / "models"
MODEL, CALIBRATION = MODELS / "digits_resnet.onnx", f"{MODELS / 'digits.py'}:calibration"

CODE = """
import sys, sparsecc
options = {"ratio": float(sys.argv[3]), "measure": False, "force": True}
print("ready", flush=True)
for line in sys.stdin:
    sparsecc.compile(sys.argv[1], output=sys.argv[2], **options)
    print("done", flush=True)
"""


def state_of(out: Path) -> str:
    """`absent` or `complete`; anything else fails the test."""
    if not out.exists():
        return "absent"
    assert Bundle.open(out).verify_manifest() == []
    return "complete"


def litter(place: Path) -> list[str]:
    return [p.name for p in place.iterdir() if ".sparsecc-" in p.name]


def kill_while_compiling(place: Path, temporary: Path, seconds: float) -> None:
    """Start a compile in a process of its own, with its worker, and kill it after so many seconds."""
    command = [sys.executable, "-c", CODE, str(MODEL), str(place / "out"), "0.3"]
    environment = {**os.environ, "TMPDIR": str(temporary)}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        process.stdin.write("go\n")
        process.stdin.flush()
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)


def kills(tmp_path: Path, number: int, seed: int) -> None:
    place, temporary = tmp_path / "place", tmp_path / "tmp"
    place.mkdir()
    temporary.mkdir()
    moments = random.Random(seed)
    seen = set()
    for _ in range(number):
        kill_while_compiling(place, temporary, moments.uniform(0.1, 4.0))
        seen.add(state_of(place / "out"))
    end_of_orphans()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tempfile.tempdir", str(temporary))
        sparsecc.compile(MODEL, output=place / "out", ratio=0.3, measure=False, force=True)
    assert state_of(place / "out") == "complete"
    assert litter(place) == []
    assert list(temporary.iterdir()) == []


def end_of_orphans() -> None:
    """A worker dies with its parent; the kernel needs a moment for that."""
    time.sleep(0.5)


@pytest.mark.slow
def test_a_killed_compile_leaves_a_bundle_or_nothing(tmp_path: Path) -> None:
    kills(tmp_path, 500, seed=1)


def test_a_few_killed_compiles_leave_a_bundle_or_nothing(tmp_path: Path) -> None:
    kills(tmp_path, 4, seed=2)


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    with Worker(write=[tmp_path_factory.getbasetemp()]) as one:
        yield one


def test_a_killed_worker_leaves_a_bundle_or_nothing(worker: Worker, tmp_path: Path) -> None:
    """Only the worker dies, at 30 moments: the parent sees an error and sweeps."""
    from sparsecc.bundle.folder import sweep
    from sparsecc.errors import WorkerError

    out = tmp_path / "out"
    options = {"ratio": 0.3, "measure": False}
    request = {"model": str(MODEL), "output": str(out), "force": True, "options": options}
    task = "sparsecc.tasks.compile:compile_model"
    worker.run(task, request)
    begun = time.perf_counter()
    worker.run(task, request)
    whole = time.perf_counter() - begun
    moments = random.Random(3)
    killed = 0
    for _ in range(30):
        timer = threading.Timer(moments.uniform(0, whole), kill_child, (worker,))
        timer.start()
        try:
            worker.run(task, request)
        except WorkerError:
            killed += 1
            sweep(out)
        timer.join()
        assert state_of(out) == "complete"
        assert litter(tmp_path) == []
    assert killed > 5


def kill_child(worker: Worker) -> None:
    if worker.pid is not None:
        os.kill(worker.pid, signal.SIGKILL)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A tiny file system."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=192k", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("mounting a small file system needs root")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_full_disk_is_said_so_and_leaves_nothing(small_disk: Path) -> None:
    (small_disk / "filler").write_bytes(bytes(100 << 10))
    with pytest.raises(SystemFailureError, match="No space left"):
        sparsecc.compile(MODEL, output=small_disk / "out", ratio=0.1, measure=False)
    assert [p.name for p in small_disk.iterdir()] == ["filler"]


def test_a_full_temporary_folder_is_said_so(
    small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(small_disk))
    with pytest.raises(SystemFailureError, match="No space left"):
        sparsecc.compile(MODEL, output=tmp_path / "out", ratio=0.1, measure=False, calib=CALIBRATION)
    assert not (tmp_path / "out").exists()
    assert list(small_disk.iterdir()) == []


def test_compiles_into_one_folder_at_once_leave_one_bundle(tmp_path: Path) -> None:
    out = tmp_path / "out"
    lost: list[Exception] = []

    def compile_once(ratio: float) -> None:
        try:
            sparsecc.compile(MODEL, output=out, ratio=ratio, measure=False)
        except InputError as e:
            lost.append(e)

    threads = [threading.Thread(target=compile_once, args=(0.1 * i,)) for i in range(1, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(lost) == 2
    assert state_of(out) == "complete"
    assert litter(tmp_path) == []
