"""The worker: whatever happens in the child, the parent lives, says it in one line, and leaves no orphan."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sparsecc import errors, worker
from sparsecc.system import process
from sparsecc.worker import crash

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(HERE))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture
def child() -> Iterator[worker.Worker]:
    with worker.Worker(allowed=("worker_tasks",)) as one:
        yield one


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def gone(pid: int, within: float = 5.0) -> bool:
    end = time.monotonic() + within
    while is_alive(pid) and time.monotonic() < end:
        time.sleep(0.02)
    return not is_alive(pid)


def failure(child: worker.Worker, task: str, request: dict[str, Any] | None = None, **options: Any) -> str:
    """The one line of the WorkerError that the task must end in."""
    with pytest.raises(errors.WorkerError) as caught:
        child.run(f"worker_tasks:{task}", request or {}, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_task_returns_plain_data(child: worker.Worker) -> None:
    request = {"a": [1, 2.5, None, "é\x1b"], "long": "x" * 300_000}
    assert child.run("worker_tasks:echo", request) == request


def test_events_arrive_in_order(child: worker.Worker) -> None:
    events: list[dict[str, Any]] = []
    assert child.run("worker_tasks:progress", {}, on_event=events.append) == "done"
    assert [e["stage"] for e in events] == ["step 0", "step 1", "step 2"]


def test_one_child_serves_several_tasks(child: worker.Worker) -> None:
    pids = {child.run("worker_tasks:pid", {}) for _ in range(5)}
    assert pids == {child.pid}
    assert pids != {os.getpid()}


def test_a_warm_step_costs_little(child: worker.Worker) -> None:
    child.run("worker_tasks:echo", {})
    start = time.perf_counter()
    for _ in range(20):
        child.run("worker_tasks:echo", {})
    assert (time.perf_counter() - start) / 20 < 0.05


def test_stray_output_cannot_break_or_forge_the_answer(child: worker.Worker) -> None:
    assert child.run("worker_tasks:stray_prints", {}) == "right"


@pytest.mark.parametrize(
    "name", ["InputError", "GoalError", "UnavailableError", "SystemFailureError", "WorkerError"]
)
def test_our_errors_keep_their_class_and_message(child: worker.Worker, name: str) -> None:
    with pytest.raises(getattr(errors, name)) as caught:
        child.run("worker_tasks:fail", {"error": name, "message": "model.onnx: no such node"})
    assert type(caught.value).__name__ == name
    assert str(caught.value) == "model.onnx: no such node"
    assert child.run("worker_tasks:echo", {}) == {}


def test_a_bug_becomes_one_line_and_a_private_report(child: worker.Worker) -> None:
    with pytest.raises(errors.InternalError) as caught:
        child.run("worker_tasks:bug", {})
    assert "\n" not in str(caught.value)
    assert "KeyError" in str(caught.value)
    (report,) = crash.crash_folder().glob("*.txt")
    assert str(report) in str(caught.value)
    assert report.stat().st_mode & 0o777 == 0o600
    assert "Traceback" in report.read_text()
    assert "the last words" in report.read_text()


def test_old_reports_are_forgotten() -> None:
    for i in range(crash.KEPT + 5):
        crash.write_report({"fault": str(i)})
    assert len(list(crash.crash_folder().iterdir())) == crash.KEPT


@pytest.mark.parametrize("name", ["SIGKILL", "SIGSEGV", "SIGFPE", "SIGABRT", "SIGTERM", "SIGBUS"])
def test_a_signal_is_named_with_the_stage(child: worker.Worker, name: str) -> None:
    text = failure(child, "die", {"signal": int(signal.Signals[name])})
    assert name in text
    assert "parsing" in text
    assert child.run("worker_tasks:echo", {"again": 1}) == {"again": 1}


def test_a_real_segmentation_fault_leaves_a_report(child: worker.Worker) -> None:
    text = failure(child, "null_pointer")
    assert "SIGSEGV" in text
    assert "folding" in text
    assert "null_pointer" in next(crash.crash_folder().glob("*.txt")).read_text()


@pytest.mark.parametrize(("task", "request_"), [("spin", {}), ("die", {"signal": int(signal.SIGSTOP)})])
def test_the_deadline_ends_a_child_that_hangs(
    child: worker.Worker, task: str, request_: dict[str, Any]
) -> None:
    start = time.monotonic()
    assert "after 1 s" in failure(child, task, request_, deadline=1.0)
    assert time.monotonic() - start < 4
    assert child.pid is None


@pytest.mark.parametrize("task", ["hog", "hog_native"])
def test_memory_is_limited(task: str) -> None:
    with worker.Worker(memory=300 << 20, allowed=("worker_tasks",)) as child:
        text = failure(child, task, deadline=60)
    assert ("SIGABRT" if task == "hog_native" else "out of memory") in text


def test_a_library_that_reports_want_of_memory_is_understood(child: worker.Worker) -> None:
    assert "out of memory" in failure(child, "native_refusal")


@pytest.mark.skipif(sys.platform != "linux", reason="reads what is used from /proc")
def test_a_model_that_cannot_be_written_for_want_of_memory_is_understood(child: worker.Worker) -> None:
    assert "out of memory" in failure(child, "serialize")


def test_the_parent_watches_memory_too() -> None:
    with worker.Worker(memory=200 << 20, allowed=("worker_tasks",)) as child:
        child.run("worker_tasks:echo", {})
        assert child.pid is not None
        resource.prlimit(child.pid, resource.RLIMIT_DATA, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        assert "out of memory" in failure(child, "hog", deadline=60)


def test_a_mapped_file_may_be_larger_than_the_limit(tmp_path: Path) -> None:
    with open(tmp_path / "large", "wb") as file:
        file.truncate(4 << 30)
    with worker.Worker(memory=256 << 20, allowed=("worker_tasks",)) as child:
        assert child.run("worker_tasks:map_file", {"path": str(tmp_path / "large")}) == 4 << 30


def test_messages_are_bounded(child: worker.Worker) -> None:
    assert len(child.run("worker_tasks:big", {"bytes": 10 << 20})) == 10 << 20
    with pytest.raises(errors.InternalError, match="over"):
        child.run("worker_tasks:big", {"bytes": 65 << 20})
    assert "message over" in failure(child, "flood", deadline=60)


@pytest.mark.parametrize("task", ["leave", "not_plain"])
def test_no_answer_is_a_fault_of_ours(child: worker.Worker, task: str) -> None:
    with pytest.raises(errors.InternalError):
        child.run(f"worker_tasks:{task}", {"status": 3})


@pytest.mark.parametrize(
    "task",
    [
        "os:system",
        "sparsecc",
        "sparsecc.worker:_kill",
        "../x:y",
        "sparsecc_evil.x:y",
        "sparsecc.x:y;z",
        "a b:c",
    ],
)
def test_only_tasks_of_ours_may_be_named(task: str) -> None:
    with pytest.raises(errors.InternalError, match="not a task"):
        worker.run(task, {})


def test_a_killed_child_takes_its_own_children_along(child: worker.Worker) -> None:
    events: list[dict[str, Any]] = []
    failure(child, "grandchild", deadline=2.0, on_event=events.append)
    assert gone(events[0]["pid"])


PARENT = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in a background job
sys.path[:0] = [{root!r}, {here!r}]
from sparsecc.worker import Worker
with Worker(allowed=("worker_tasks",)) as child:
    child.run("worker_tasks:pid", {{}})
    print(child.pid, flush=True)
    child.run("worker_tasks:spin", {{}}, deadline=60)
"""


@pytest.mark.parametrize("name", ["SIGKILL", "SIGINT", "SIGTERM"])
def test_no_orphan_survives_its_parent(name: str) -> None:
    code = PARENT.format(root=str(HERE.parent), here=str(HERE))
    parent = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    time.sleep(0.2)
    assert is_alive(child)
    parent.send_signal(signal.Signals[name])
    _, error = parent.communicate(timeout=30)
    assert (b"KeyboardInterrupt" in error) == (name == "SIGINT")
    assert gone(child)


def test_an_event_handler_that_raises_ends_the_child(child: worker.Worker) -> None:
    def refuse(event: dict[str, Any]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        child.run("worker_tasks:progress", {}, on_event=refuse)
    assert child.pid is None


@pytest.mark.parametrize(
    ("task", "most", "ours"),
    [("inspect", 560, 130), ("compare", 640, 160), ("profile", 640, 160), ("compile_to_goal", 850, 360)],
)
def test_a_worker_starts_with_few_modules(child: worker.Worker, task: str, most: int, ours: int) -> None:
    """Most of a small task's time is imports: what a task may not need loads when it is first used."""
    loaded = child.run("worker_tasks:loaded", {"module": f"sparsecc.tasks.{task}"})
    late = {
        "sympy.core",
        "scipy.linalg",
        "onnx.reference",
        "jinja2",
        "rich",
        "torch",
        "asyncssh",
        "transformers",
    }
    late |= {"onnxruntime"} if task == "inspect" else set()
    assert late.isdisjoint(loaded)
    assert len(loaded) <= most
    assert sum(name.startswith("sparsecc") for name in loaded) <= ours


def test_tasks_share_a_kept_child_where_their_sandboxes_are_alike(
    models_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[subprocess.Popen[bytes]] = []
    start = process.start

    def counted(*arguments: Any, **options: Any) -> subprocess.Popen[bytes]:
        started.append(start(*arguments, **options))
        return started[-1]

    monkeypatch.setattr(process, "start", counted)

    def children(**options: Any) -> int:
        request = {"model": str(models_dir / "digits_lstm.onnx")}
        worker.run("sparsecc.loading.identity:identify", request, **options)
        return len(started)

    (tmp_path / "inside").mkdir()
    with worker.kept(tmp_path):
        assert children() == 1
        assert children(write=[tmp_path / "inside"]) == 1
        assert children(write=[tmp_path.parent]) == 2
        assert children(memory=1 << 30) == 3
        assert children(write=None) == 4  # outside of a sandbox: perhaps the user's own code
        assert children() == 4
    assert gone(started[0].pid)
    assert children() == 5


def test_what_loads_late_is_whole_when_it_is_used(child: worker.Worker) -> None:
    assert child.run("worker_tasks:symbolic_sum", {}) == "batch + 1"


def test_the_child_ignores_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("json", "traceback", "worker_tasks"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('hijacked')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    with worker.Worker(allowed=("worker_tasks",)) as child:
        assert child.run("worker_tasks:echo", json.loads("{}")) == {}
