"""Hostile files through the whole compile: refused or compiled as they must be, within limits, and nothing is
left but a complete bundle."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from onnx import parser

from sparsecc import compilation
from sparsecc.bundle.folder import Bundle
from sparsecc.errors import InputError, SparseccError
from sparsecc.escaping import escape
from sparsecc.worker import Worker

SECONDS = 60.0
MEMORY = 4 << 30
ENDLESS = "loop_forever"


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    with Worker(memory=MEMORY, write=[tmp_path_factory.getbasetemp()]) as one:
        yield one


def compiled(worker: Worker, model: Path, out: Path) -> tuple[int, str]:
    """Exit code and line of a compile."""
    options = {"ratio": 0.5, "measure": False}
    request = {"model": str(model), "output": str(out), "options": options}
    try:
        worker.run("sparsecc.tasks.compile:compile_model", request, deadline=2 * SECONDS)
    except SparseccError as e:
        return e.exit_code, str(e)
    return 0, ""


def model_in(folder: Path) -> Path:
    whole = folder / "model.onnx"
    return whole if whole.is_file() else min(p for p in folder.iterdir() if p.is_file())


def faults(worker: Worker, folder: Path, wanted: str, place: Path) -> list[str]:
    """What is wrong with how a case was treated."""
    place.mkdir()
    begun = time.perf_counter()
    code, line = compiled(worker, model_in(folder), place / "out")
    seconds = time.perf_counter() - begun
    allowed = {"refuse": (2,), "accept": (0,)}.get(wanted, (0, 2, 5))
    found = [f"{folder.name}: exit {code}: {line}"] if code not in allowed else []
    found += [f"{folder.name}: {seconds:.0f} s"] if seconds > SECONDS else []
    found += [f"{folder.name}: not one line: {line!r}"] if line != escape(line) else []
    left = {p.name for p in place.iterdir()}
    if code in (0, 2) and left != ({"out"} if code == 0 else set()):
        found.append(f"{folder.name}: left {left}")
    if code == 0:
        found += Bundle.open(place / "out").verify_manifest()
    return found


def test_every_case_is_refused_or_compiled_as_it_must_be(
    worker: Worker, shared: Path, tmp_path: Path
) -> None:
    cases = json.loads((shared / "hostile" / "expect.json").read_text())
    found = [
        fault
        for name, wanted in sorted(cases.items())
        if name != ENDLESS
        for fault in faults(worker, shared / "hostile" / name, wanted, tmp_path / name)
    ]
    assert not found


@pytest.mark.slow
def test_a_loop_without_end_is_given_up(worker: Worker, shared: Path, tmp_path: Path) -> None:
    assert not faults(worker, shared / "hostile" / ENDLESS, "refuse", tmp_path / "case")


LOOP = """<ir_version: 8, opset_import: ["": 17]> g (float[1] x) => (float[1] y)
    <int64 n = {9223372036854775807}, bool more = {1}> {
        y = Loop (n, more, x) <body = b (int64 i, bool c, float[1] a) => (bool d, float[1] e) {
            d = Identity (c)
            e = Cos (a)
        }>
    }"""


def test_a_run_on_random_inputs_has_a_deadline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sparsecc.tasks.compile import compile_model

    monkeypatch.setattr(compilation, "PROBE_SECONDS", 0.3)
    (tmp_path / "m.onnx").write_bytes(parser.parse_model(LOOP).SerializeToString())
    request = {"model": str(tmp_path / "m.onnx"), "output": str(tmp_path / "out"), "options": {}}
    begun = time.perf_counter()
    with pytest.raises(InputError, match="does not run on random inputs"):
        compile_model(request, lambda event: None)
    assert time.perf_counter() - begun < 20
    assert not (tmp_path / "out").exists()
