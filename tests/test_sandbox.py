"""What a worker is kept from, each thing tried inside one; and what stays open to it."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import sparsecc
from sparsecc import errors, worker
from sparsecc.cli import main
from sparsecc.system import landlock, sandbox, seccomp
from sparsecc.system.sandbox import SWITCH
from sparsecc.tasks.outside import beyond_sandbox
from tests.test_gate import stack

HERE = Path(__file__).parent
NETWORK = ("connect", "datagram", "local socket")
CALLS = ("ptrace", "unshare", "memfd_create", "user namespace", "network namespace", "session")
FILES = ("write", "overwrite", "truncate", "remove", "rename", "link", "folder")

files = pytest.mark.skipif(not landlock.version(), reason="this kernel has no Landlock")
signals = pytest.mark.skipif(landlock.version() < 6, reason="this kernel's Landlock does not bound signals")
calls = pytest.mark.skipif(
    not seccomp.is_available(), reason="this kernel has no seccomp, or we no numbers for it"
)


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(HERE))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(SWITCH, raising=False)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder that is nobody's to write to but the user's."""
    folder = tmp_path / "place"
    folder.mkdir()
    (folder / "old").write_text("untouched")
    return folder


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """Somebody listens, over TCP and at a path."""
    path = tmp_path_factory.mktemp("socket") / "s"
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as local:
        local.bind(str(path))
        local.listen()
        yield {"port": tcp.getsockname()[1], "path": str(path)}


def attempted(what: str, write: list[Path] | None = None, **about: Any) -> str:
    """What came of trying it in a worker; `write` as for `worker.run`, () by default."""
    with worker.Worker(allowed=("worker_tasks",), write=write or ()) as child:
        told: str = child.run("worker_tasks:attempt", {"try": what, **about})
    return told


@files
@pytest.mark.parametrize("what", FILES)
def test_nothing_is_written_outside(what: str, place: Path) -> None:
    assert attempted(what, path=str(place)) in ("EACCES", "EXDEV")
    assert [p.name for p in place.iterdir()] == ["old"]
    assert (place / "old").read_text() == "untouched"


@files
def test_the_folders_that_are_left_open_are_written(place: Path, tmp_path: Path) -> None:
    assert attempted("write", [place], path=str(place)) == "done"
    (tmp_path / "cache" / "sparsecc").mkdir(parents=True, exist_ok=True)
    assert attempted("write", path=str(tmp_path / "cache" / "sparsecc")) == "done"
    assert attempted("read", path=str(place)) == "done"


@calls
@pytest.mark.parametrize("what", NETWORK)
def test_there_is_no_network(what: str, server: dict[str, Any]) -> None:
    assert attempted(what, **server) == "EPERM"


@calls
@pytest.mark.parametrize("what", CALLS)
def test_calls_that_reach_into_others_are_refused(what: str) -> None:
    assert attempted(what) == "EPERM"


@calls
def test_calls_whose_flags_a_filter_cannot_read_are_unknown_to_it() -> None:
    """Namespaces by clone3; a C library takes clone instead, for threads as for programs."""
    assert attempted("clone3") == "ENOSYS"
    assert attempted("interpreter") == "done"


@files
def test_no_program_starts_but_our_interpreter() -> None:
    assert attempted("shell") == "EACCES"
    assert attempted("interpreter") == "done"


@files
def test_the_memory_of_the_parent_is_closed() -> None:
    assert attempted("memory of the parent") in ("EACCES", "EPERM")


@signals
def test_no_signal_reaches_the_parent() -> None:
    assert attempted("signal") == "EPERM"


@pytest.mark.parametrize("what", ["write", "shell", "connect", "unshare", "signal"])
def test_outside_of_it_each_of_these_works(what: str, place: Path, server: dict[str, Any]) -> None:
    """Else the tests above would prove nothing."""
    with worker.Worker(allowed=("worker_tasks",), write=None) as child:
        about = {**server, "path": str(place)}
        told = child.run("worker_tasks:attempt", {"try": what, **about})
    assert told == "done" or (what == "unshare" and os.geteuid() != 0)


@files
def test_the_switch_turns_it_off(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, "off")
    assert attempted("write", path=str(place)) == "done"
    assert sandbox.state().told == "turned off"
    monkeypatch.setenv(SWITCH, "maybe")
    with pytest.raises(errors.InputError, match="on or off"):
        worker.Worker()


def test_doctor_tells_what_holds(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    found = sparsecc.doctor()["sandbox"]
    assert found["holds"] == bool(landlock.version() or seccomp.is_available())
    assert ("Landlock" in found["told"]) == bool(landlock.version())
    assert main(["doctor"]) == 0
    assert found["told"] in " ".join(capsys.readouterr().out.split())
    assert main(["doctor", "--no-sandbox"]) == 0
    assert "turned off" in capsys.readouterr().out
    assert SWITCH not in os.environ


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({}, ""),
        ({"target": "onnxruntime", "device": "local", "calib": "samples/"}, ""),
        ({"evaluate": "metric.py:accuracy"}, "--evaluate"),
        ({"calib": "samples.py:batches"}, "--calib "),
        ({"calib_general": "samples.py:batches"}, "--calib-general"),
        ({"data": "samples.py:batches"}, "--data"),
        ({"device": "ssh://pi@board"}, "ssh://pi@board"),
        ({"build": {"device": "adb:1"}}, "adb:1"),
        ({"build": {"plugins": ["p.so"]}}, "plug-ins"),
        ({"target": "tensorrt"}, "drivers"),
    ],
)
def test_what_it_would_stop_runs_outside(options: dict[str, Any], why: str) -> None:
    assert why in beyond_sandbox(options)
    assert bool(why) == bool(beyond_sandbox(options))


def test_a_function_of_the_users_own_runs_outside_and_is_said(models_dir: Path, tmp_path: Path) -> None:
    metric = tmp_path / "metric.py"
    metric.write_text(
        "from pathlib import Path\n"
        "def always(run):\n"
        f"    Path({str(tmp_path / 'written')!r}).write_text('x')\n"
        "    return 1.0\n"
    )
    events: list[dict[str, Any]] = []
    sparsecc.compile(
        models_dir / "digits_lstm.onnx",
        output=tmp_path / "out",
        measure=False,
        ratio=0.2,
        evaluate=f"{metric}:always",
        on_event=events.append,
    )
    assert (tmp_path / "written").exists()
    assert "--evaluate is a function of your own" in events[0]["note"]


@files
def test_threads_that_it_would_not_hold_are_refused() -> None:
    done = threading.Event()
    waiting = threading.Thread(target=done.wait)
    waiting.start()
    with pytest.raises(errors.WorkerError, match="threads before its sandbox"):
        sandbox.enter([])
    done.set()
    waiting.join()


def test_who_fills_a_bundle_cannot_lead_out_of_it(tmp_path: Path) -> None:
    from sparsecc.bundle.folder import BundleWriter

    (tmp_path / "mine").write_text("mine")
    with pytest.raises(errors.InternalError, match="no plain file"), BundleWriter(tmp_path / "out") as bundle:
        (bundle.folder / "model.onnx").symlink_to(tmp_path / "mine")
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize("is_own_code", [False, True])
def test_the_gate_measures_in_it(
    is_own_code: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, sandboxes = worker.run, []

    def observed(*arguments: Any, **options: Any) -> Any:
        sandboxes.append(options["write"])
        return run(*arguments, **options)

    monkeypatch.setattr(worker, "run", observed)
    (tmp_path / "data.py").write_text("import numpy\ndef f(): yield {'x': numpy.ones((64, 128), 'float32')}")
    path = str(stack(tmp_path / "a.onnx", 3))
    data = ["--data", f"{tmp_path / 'data.py'}:f"] if is_own_code else []
    assert main(["gate", path, "--baseline", path, "--max-regression", "99%", *data, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["change"]["ci95"]
    assert sandboxes == [None if is_own_code else ()]
