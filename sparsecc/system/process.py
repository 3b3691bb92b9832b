"""How every process starts: ours isolated, in a scratch folder and bounded, each dead with its parent.

Isolated (`python -I`) the interpreter ignores the working folder, PYTHONPATH and the user's own site packages; where
modules are found is handed over as absolute paths. So a `json.py` or `sitecustomize.py` that lies beside a model is
never imported. `tests/test_process.py` finds processes that start in another way.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import resource
import runpy
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from sparsecc.system.deferred import defer
from sparsecc.system.memory import default_limit

_BOOT = (
    "import json, sys; config = json.loads(sys.argv[1]); sys.path[:] = config['path']; "
    "from sparsecc.system.process import begin; begin(config)"
)
_PROGRAM = """
import ctypes, os, signal, sys
parent, words = int(sys.argv[1]), sys.argv[2:]
if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
for name in ("SIGPIPE", "SIGXFSZ"):
    signal.signal(getattr(signal, name), signal.SIG_DFL)
signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)
if os.getppid() != parent:
    os._exit(1)
try:
    os.execvp(words[0], words)
except OSError as e:
    missing = isinstance(e, FileNotFoundError)
    sys.stderr.write(words[0] + (": not found" if missing else ": not executable"))
    os._exit(127 if missing else 126)
"""
"""Becomes a program that is not ours, bound to its parent first: what PR_SET_PDEATHSIG says outlives an exec."""
_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38
_OTHERS = 4096
"""Processes and threads that the user may start beside ours before ours are refused one."""
GRACE = 10.0
"""Seconds behind its deadline at which the kernel ends a process that nobody ended, its parent being stopped."""

THREADS_OF_BLAS = {
    "OPENBLAS_NUM_THREADS": "1",
    "GOTO_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "BLIS_NUM_THREADS": "1",
    "VECLIB_MAXIMUM_THREADS": "1",
}
"""Sums come out in another order with another number of threads: what decides is this, never the environment."""
_IGNORED = ("OMP_NUM_THREADS", "OMP_DYNAMIC", "MKL_DYNAMIC", "OPENBLAS_DEFAULT_NUM_THREADS")


@dataclass(frozen=True)
class Ended:
    """How a process ended: its exit code (negative: the signal), and the end of what it printed."""

    status: int
    printed: str


def start(
    entry: str,
    task: Mapping[str, Any],
    *,
    scratch: Path,
    output: int,
    memory: int | None = None,
    seconds: float | None = None,
    env: Mapping[str, str] | None = None,
    pass_fds: Sequence[int] = (),
    own_session: bool = False,
) -> subprocess.Popen[bytes]:
    """Start a process that calls `package.module:function` with `task` and ends when that returns.

    It begins in the folder `scratch`, which is its TMPDIR too; stdout and stderr go to the file descriptor
    `output`. `memory` bounds its allocations in bytes, `seconds` its life. `task` travels on the command line:
    plain data, 100 kB at most. OSError where no process can be started.
    """
    config = {
        "path": [p for p in sys.path if os.path.isabs(p)],
        "parent": os.getpid(),
        "memory": memory,
        "seconds": seconds,
        "entry": entry,
        "task": dict(task),
    }
    flags = ["-I", "-X", "utf8"] + (["-B"] if sys.dont_write_bytecode else [])
    with _interrupts_held():
        return subprocess.Popen(
            [sys.executable, *flags, "-c", _BOOT, json.dumps(config)],
            cwd=scratch,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=pass_fds,
            start_new_session=own_session,
            env={**_inherited(), **(env or {}), "TMPDIR": str(scratch)},
        )


def start_program(
    words: Sequence[str],
    *,
    folder: Path | str | None = None,
    stdin: int = subprocess.DEVNULL,
    stdout: int | IO[bytes] = subprocess.DEVNULL,
    stderr: int | IO[bytes] = subprocess.DEVNULL,
    own_session: bool = False,
) -> subprocess.Popen[bytes]:
    """Start a program that is not ours (a builder, adb, the user's own command) in `folder`, by default ours.

    It dies with the thread that starts it (Linux). Where there is no such program it ends with 127, where it cannot
    be started with 126, as in a shell. OSError where no process can be started.
    """
    with _interrupts_held():
        return subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _PROGRAM, str(os.getpid()), *words],
            cwd=folder,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            start_new_session=own_session,
        )


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """SIGINT waits in this thread, and in a process that it starts until `begin` there: an interpreter that is hit
    while it starts ends with status 1, as after a fault, not by the signal."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def run(
    entry: str,
    task: Mapping[str, Any],
    *,
    scratch: Path,
    seconds: float,
    env: Mapping[str, str] | None = None,
) -> Ended:
    """As `start`, and wait for it. TimeoutError after `seconds`, when the process has been killed."""
    with open(scratch / "printed.txt", "w+b") as printed:
        process = start(entry, task, scratch=scratch, output=printed.fileno(), seconds=seconds, env=env)
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired as e:
            raise TimeoutError(f"{entry} took over {seconds:g} s") from e
        finally:
            process.kill()
            process.wait()
        printed.seek(max(0, os.fstat(printed.fileno()).st_size - 65536))
        return Ended(process.returncode, printed.read().decode("utf-8", "replace"))


def begin(config: Mapping[str, Any]) -> None:
    """The first call in the new process: bind and bound it, then call its entry, whose libraries load when used."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    defer()
    die_with_parent(config["parent"])
    _forbid_privileges()
    for kind, wanted in _limits(config["memory"]):
        lower_limit(kind, wanted)
    if config["seconds"] is not None:
        end_after(config["seconds"] + GRACE)
    module, _, function = config["entry"].partition(":")
    getattr(importlib.import_module(module), function)(config["task"])


def run_module(task: Mapping[str, Any]) -> None:
    """An entry: the module `task["module"]` as a program, with `task["arguments"]`."""
    sys.argv = [task["module"], *task["arguments"]]
    runpy.run_module(task["module"], run_name="__main__", alter_sys=True)


def die_with_parent(parent: int) -> None:
    """End this process when the thread that started it ends; at once where `parent` is gone already."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def end_after(seconds: float) -> None:
    """The kernel kills this process (SIGALRM) so long from now, unless another call comes before; 0: never.

    Not RLIMIT_CPU: under it Linux advances the processor time of a process by ticks of some milliseconds
    (kernel/time/posix-cpu-timers.c, `cpu_clock_sample_group`), and latencies are measured in that.
    """
    signal.setitimer(signal.ITIMER_REAL, seconds)


def lower_limit(kind: int, wanted: int) -> None:
    """Set a soft limit of the kernel, never above the hard one."""
    _, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))


def _forbid_privileges() -> None:
    """No program that this process starts gains rights by its set-user-id bit."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def _limits(memory: int | None) -> Iterator[tuple[int, int]]:
    """RLIMIT_DATA bounds what a process may allocate and leaves mapped files alone; RLIMIT_AS would forbid
    mapping a model larger than the limit, which costs no memory."""
    yield resource.RLIMIT_CORE, 0
    yield resource.RLIMIT_NOFILE, 65536
    yield resource.RLIMIT_FSIZE, max(16 << 30, 4 * default_limit())
    if memory is not None:
        yield resource.RLIMIT_DATA, memory
    with contextlib.suppress(OSError, ValueError, IndexError), open("/proc/loadavg") as load:
        yield resource.RLIMIT_NPROC, int(load.read().split()[3].split("/")[1]) + _OTHERS


def _inherited() -> dict[str, str]:
    """The environment, with our own choice of what BLAS libraries read."""
    return {k: v for k, v in os.environ.items() if k not in _IGNORED} | THREADS_OF_BLAS
