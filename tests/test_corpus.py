"""Files of public test suites: each compiles with its outputs checked, or is refused in one line. `make slow`
runs 600 of them, `python benchmarks/corpus.py` all."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sparsecc.bundle.folder import Bundle
from sparsecc.errors import SparseccError
from sparsecc.escaping import escape
from sparsecc.worker import Worker

SECONDS = 60.0


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    with Worker(memory=4 << 30, write=[tmp_path_factory.getbasetemp()]) as one:
        yield one


def files_of(shared: Path, number: int, seed: int) -> list[Path]:
    """Some files of every folder of the corpus, the same ones every time."""
    root = shared / "corpus"
    if not root.is_dir():
        pytest.skip(f"no corpus at {root}")
    chosen = []
    for folder in sorted(p for p in root.iterdir() if p.is_dir()):
        files = sorted(folder.rglob("*.onnx"))
        chosen += random.Random(seed).sample(files, min(number, len(files)))
    return chosen


def fault(worker: Worker, path: Path, place: Path, ratio: float) -> str | None:
    """What is wrong with how a file was treated, None when nothing is."""
    place.mkdir()
    options = {"ratio": ratio, "measure": False}
    request = {"model": str(path), "output": str(place / "out"), "options": options}
    begun = time.perf_counter()
    try:
        worker.run("sparsecc.tasks.compile:compile_model", request, deadline=SECONDS)
    except SparseccError as e:
        line = str(e)
        refused = e.exit_code == 2 or "crashed (SIG" in line
        if not refused or line != escape(line):
            return f"{path.name}: exit {e.exit_code} after {time.perf_counter() - begun:.0f} s: {line}"
        return f"{path.name}: left something" if e.exit_code == 2 and list(place.iterdir()) else None
    problems = Bundle.open(place / "out").verify_manifest()
    return f"{path.name}: {problems}" if problems else None


@pytest.mark.parametrize("ratio", [0.0, 0.5])
def test_some_of_every_folder(worker: Worker, shared: Path, tmp_path: Path, ratio: float) -> None:
    files = files_of(shared, 6, seed=0)
    assert len(files) > 50
    found = [fault(worker, f, tmp_path / str(i), ratio) for i, f in enumerate(files)]
    assert [f for f in found if f] == []


@pytest.mark.slow
@pytest.mark.parametrize("ratio", [0.0, 0.5])
def test_many_of_every_folder(worker: Worker, shared: Path, tmp_path: Path, ratio: float) -> None:
    files = files_of(shared, 100, seed=1)
    found = [fault(worker, f, tmp_path / str(i), ratio) for i, f in enumerate(files)]
    assert [f for f in found if f] == []
