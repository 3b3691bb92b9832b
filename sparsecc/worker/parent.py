"""The parent's side of a worker: start the child, feed it, listen to it, and end it whatever happens."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from sparsecc.errors import InternalError, SparseccError, WorkerError
from sparsecc.escaping import one_line
from sparsecc.system import process, sandbox
from sparsecc.system.memory import default_limit, held_by
from sparsecc.system.temp_folders import locked_temporary
from sparsecc.worker.asking import Answer, Question, Reply, nothing_held
from sparsecc.worker.crash import ended_by, write_report
from sparsecc.worker.protocol import OUT_OF_MEMORY, RESULT_LIMIT, error_named, is_task

Event = Callable[[dict[str, Any]], None]
"""Called with each progress event; its "stage", when it has one, is named if the worker dies."""

_SHARED: ContextVar[Worker | None] = ContextVar("shared", default=None)
"""The worker that `kept` keeps for the tasks of this thread."""
LEAST_MEMORY = 256 << 20
"""Bytes below which the libraries of a worker do not load: they exit, spin or fault, each in its own way."""
_TICK = 0.05
_LOG_KEPT = 64 << 10


def run(
    task: str,
    request: dict[str, Any],
    *,
    deadline: float = 600.0,
    memory: int | None = None,
    on_event: Event | None = None,
    write: Sequence[Path] | None = (),
    answer: Answer = nothing_held,
) -> Any:
    """Run `sparsecc.module:function` as `function(request, emit)` in a fresh child; return its plain result.

    `deadline` is in seconds, `memory` in bytes (None: nine tenths of the machine's). A SparseccError of the
    child is raised here as the same class with the same message; a child that crashed, hung or ran out of
    memory is a WorkerError; any other exception in it is an InternalError that names a crash report. `write` are the
    folders, beside its scratch and our cache, that its sandbox leaves open; None: it runs outside of any. `answer`
    answers what the task asks; what it raises ends the worker.

    Inside `kept` the child may have served other tasks before.
    """
    if memory is not None and memory < LEAST_MEMORY:
        given, least = (one_line(f"{size / (1 << 20):.4g} MiB") for size in (memory, LEAST_MEMORY))
        raise WorkerError(
            f"a memory limit of {given} is below the {least} that a worker starts with: raise it"
        )
    shared = _SHARED.get()
    if shared is not None and shared.holds(memory, write):
        return shared.run(task, request, deadline=deadline, on_event=on_event, answer=answer)
    with Worker(memory=memory, write=write) as worker:
        return worker.run(task, request, deadline=deadline, on_event=on_event, answer=answer)


@contextlib.contextmanager
def kept(write: Path, *, memory: int | None = None) -> Iterator[None]:
    """Inside, tasks that `run` gets in this thread share one child, which imports its libraries once.

    They are those with this limit of memory whose sandbox would leave nothing but folders below `write` open. What
    runs outside of a sandbox may be the user's own code, which finds a process as it was made: it gets its own.
    """
    with Worker(memory=memory, write=[write]) as worker:
        before = _SHARED.set(worker)
        try:
            yield
        finally:
            _SHARED.reset(before)


@dataclass
class _Child:
    process: subprocess.Popen[bytes]
    requests: int
    events: int
    log: int
    scratch: Path
    lock: int
    tail: bytes = b""
    buffer: bytearray = field(default_factory=bytearray)
    outbox: memoryview = field(default_factory=lambda: memoryview(b""))
    stage: str = ""
    question: Question | None = None
    answer: dict[str, Any] | None = None
    over: bool = False


class _OverError(Exception):
    """The child ended, or has its result, while a function of the user's waited for it."""


class Worker:
    """A child process that serves one task after another. A task that crashes or hangs costs the child; the
    next one gets a new child. A context manager for one thread: the child dies with the thread that began it.

    `allowed` names the top-level packages whose functions may be tasks; `write` is as for `sparsecc.worker.run`.
    """

    def __init__(
        self,
        *,
        memory: int | None = None,
        allowed: tuple[str, ...] = ("sparsecc",),
        write: Sequence[Path] | None = (),
    ) -> None:
        self._memory = default_limit() if memory is None else memory
        self._allowed = allowed
        self._write = write if write is not None and sandbox.is_wanted() else None
        self._child: _Child | None = None

    def holds(self, memory: int | None, write: Sequence[Path] | None) -> bool:
        """Whether a task with these limits may run here: as well kept as in a child of its own, and no other runs."""
        is_busy = self._child is not None and self._child.answer is None
        if is_busy or write is None or self._memory != (default_limit() if memory is None else memory):
            return False
        open_here = [os.path.realpath(path) for path in self._write or ()]
        inside = all(any(Path(os.path.realpath(path)).is_relative_to(o) for o in open_here) for path in write)
        return inside or not sandbox.is_wanted()

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(grace=1.0 if kind is None else 0.0)

    @property
    def pid(self) -> int | None:
        """Process number of the child, None while there is none."""
        return self._child.process.pid if self._child else None

    def run(
        self,
        task: str,
        request: dict[str, Any],
        *,
        deadline: float = 600.0,
        on_event: Event | None = None,
        answer: Answer = nothing_held,
    ) -> Any:
        """As `sparsecc.worker.run`, in this child."""
        if not is_task(task, self._allowed):
            raise InternalError(f"'{one_line(task)}' is not a task: tasks read sparsecc.module:function")
        child = self._child = self._child or self._start()
        child.outbox = memoryview(
            json.dumps({"task": task, "request": request, "seconds": deadline}).encode() + b"\n"
        )
        child.stage, child.question, child.answer, child.tail = task, None, None, b""
        try:
            self._converse(child, deadline, on_event, answer)
            return self._result(child, task, request)
        except BaseException as e:
            if not (isinstance(e, SparseccError) and child.answer):
                self.close(grace=0.0)
            raise

    def close(self, grace: float = 1.0) -> None:
        """End the child and all it started; it has `grace` seconds to leave by itself."""
        child, self._child = self._child, None
        if child is None:
            return
        os.close(child.requests)
        with contextlib.suppress(subprocess.TimeoutExpired):
            if grace:
                child.process.wait(grace)
        _kill(child.process)
        shutil.rmtree(child.scratch, ignore_errors=True)
        for fd in (child.events, child.log, child.lock):
            os.close(fd)

    def _start(self) -> _Child:
        request_out, request_in = os.pipe()
        event_out, event_in = os.pipe()
        log_out, log_in = os.pipe()
        scratch, lock = locked_temporary("worker")
        task = {
            "requests": request_out,
            "events": event_in,
            "allowed": self._allowed,
            "folder": _working_folder(),
            "write": None if self._write is None else _folders(scratch, *self._write),
        }
        try:
            started = process.start(
                "sparsecc.worker.child:serve",
                task,
                scratch=scratch,
                output=log_in,
                memory=self._memory,
                pass_fds=(request_out, event_in),
                own_session=True,
            )
        except OSError as e:
            for fd in (request_in, event_out, log_out, lock):
                os.close(fd)
            shutil.rmtree(scratch, ignore_errors=True)
            raise WorkerError(f"cannot start a worker: {one_line(str(e))}") from e
        finally:
            for fd in (request_out, event_in, log_in):
                os.close(fd)
        for fd in (request_in, event_out, log_out):
            os.set_blocking(fd, False)
        return _Child(started, request_in, event_out, log_out, scratch, lock)

    def _converse(self, child: _Child, deadline: float, on_event: Event | None, answer: Answer) -> None:
        """Until the child has answered or is gone; raises WorkerError at the deadline and over the memory."""
        end = time.monotonic() + deadline
        with selectors.DefaultSelector() as selector:
            selector.register(child.events, selectors.EVENT_READ, _read_events)
            selector.register(child.log, selectors.EVENT_READ, _read_log)
            selector.register(child.requests, selectors.EVENT_WRITE, _write_request)

            def asked() -> Question | None:
                while child.answer is None and not child.over:
                    for key, _ in selector.select(min(_TICK, max(0.0, end - time.monotonic()))):
                        if not key.data(child):
                            selector.unregister(key.fd)
                    _take_messages(child, on_event)
                    if child.question is not None:
                        question, child.question = child.question, None
                        return question
                    self._check(child, end, deadline)
                return None

            def exchange(reply: Reply) -> Question:
                _send_reply(child, reply)
                question = asked()
                if question is None:
                    raise _OverError
                return question

            while (question := asked()) is not None:
                with contextlib.suppress(_OverError):
                    _send_reply(child, answer(question, exchange))

    def _check(self, child: _Child, end: float, deadline: float) -> None:
        if child.answer is not None or child.over:
            return
        if time.monotonic() >= end:
            raise WorkerError(
                f"the worker was stopped after {deadline:g} s while {one_line(child.stage)}: "
                "give it more time, or a smaller model"
            )
        if held_by(child.process.pid) > self._memory:
            raise self._out_of_memory(child)
        if child.process.poll() is not None:
            _read_events(child)
            child.over = b"\n" not in child.buffer

    def _out_of_memory(self, child: _Child) -> WorkerError:
        limit = f"{self._memory / (1 << 30):.2f} GiB"
        return WorkerError(
            f"the worker ran out of memory (limit {limit}) while {one_line(child.stage)}: "
            "raise the limit, or use a smaller model"
        )

    def _result(self, child: _Child, task: str, request: dict[str, Any]) -> Any:
        answer = child.answer
        if answer is None:
            raise self._death(child, task, request)
        if "result" in answer:
            return answer["result"]
        trace = str(answer.get("traceback", ""))
        if "error" in answer:
            raise error_named(answer["error"], answer.get("message", ""), trace)
        if "memory" in answer:
            raise self._out_of_memory(child)
        fault = one_line(str(answer.get("fault", "a message it cannot have sent")))
        where = _report(child, task, request, fault, trace)
        said = f"a fault of sparsecc while {one_line(child.stage)}: {fault}{where}"
        raise error_named(InternalError.__name__, said, trace)

    def _death(self, child: _Child, task: str, request: dict[str, Any]) -> SparseccError:
        _kill(child.process)
        _read_log(child)
        code = child.process.returncode
        if any(phrase.encode() in child.tail for phrase in OUT_OF_MEMORY):
            return self._out_of_memory(child)
        if code >= 0:
            fault = f"the worker ended with status {code} and no answer"
            return InternalError(fault + _report(child, task, request, fault, ""))
        how, means = ended_by(signal.Signals(-code))
        fault = f"the worker {how} while {one_line(child.stage)}: {means}"
        return WorkerError(fault + _report(child, task, request, fault, ""))


def _folders(*paths: Path) -> list[str]:
    """Those that are there, as absolute paths."""
    return [os.path.abspath(path) for path in paths if path.is_dir()]


def _working_folder() -> str | None:
    """Where the relative paths of a request start; None where that folder is gone."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        return None


def _read_events(child: _Child) -> bool:
    while data := _read(child.events):
        child.buffer += data
        if len(child.buffer) > RESULT_LIMIT or len(data) < (1 << 16):
            return True
    return data is None


def _read_log(child: _Child) -> bool:
    for _ in range(16):
        data = _read(child.log)
        if not data:
            return data is None
        child.tail = (child.tail + data)[-_LOG_KEPT:]
    return True


def _read(fd: int) -> bytes | None:
    """What is there: b"" at the end of the stream, None when nothing has come yet."""
    try:
        return os.read(fd, 1 << 16)
    except BlockingIOError:
        return None


def _write_request(child: _Child) -> bool:
    try:
        child.outbox = child.outbox[os.write(child.requests, child.outbox) :]
    except BlockingIOError:
        return True
    except BrokenPipeError:
        return False
    return len(child.outbox) > 0


def _send_reply(child: _Child, reply: Reply) -> None:
    """The reply to a child that waits for it; it is shorter than a pipe holds."""
    if child.answer is None:
        with contextlib.suppress(BrokenPipeError):
            os.write(child.requests, json.dumps({"reply": reply}).encode() + b"\n")


def _take_messages(child: _Child, on_event: Event | None) -> None:
    while child.answer is None and (end := child.buffer.find(b"\n")) >= 0:
        message = _message(bytes(child.buffer[:end]))
        del child.buffer[: end + 1]
        if isinstance(message.get("ask"), dict):
            child.question = message["ask"]
            return
        if "event" not in message:
            child.answer = message
            return
        event = message["event"] if isinstance(message["event"], dict) else {}
        child.stage = str(event.get("stage", child.stage))
        if on_event:
            on_event(event)
    if len(child.buffer) > RESULT_LIMIT:
        raise WorkerError(
            f"the worker sent a message over {RESULT_LIMIT >> 20} MiB while {one_line(child.stage)}"
        )


def _message(line: bytes) -> dict[str, Any]:
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        message = None
    return message if isinstance(message, dict) else {"fault": "the worker sent what is not a message"}


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End the child and its whole process group, and collect it."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _report(child: _Child, task: str, request: dict[str, Any], fault: str, trace: str) -> str:
    _read_log(child)
    log = child.tail.decode("utf-8", "backslashreplace")
    sections = {"fault": fault, "task": task, "request": json.dumps(request, indent=1)[:65536]}
    path = write_report(sections | {"traceback": trace, "output of the worker": log})
    return f" (crash report: {path})" if path else ""
