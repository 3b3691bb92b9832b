"""Tasks for tests/test_worker.py, run in the child: each fails in its own way."""

from __future__ import annotations

import ctypes
import importlib
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sparsecc import errors

Request = dict[str, Any]
Emit = Callable[[dict[str, Any]], None]


def echo(request: Request, emit: Emit) -> Request:
    return request


def pid(request: Request, emit: Emit) -> int:
    return os.getpid()


def loaded(request: Request, emit: Emit) -> list[str]:
    importlib.import_module(request["module"])
    return sorted(sys.modules)


def symbolic_sum(request: Request, emit: Emit) -> str:
    import onnx_ir as ir

    assert "sympy.core" not in sys.modules
    return str((ir.SymbolicDim("batch") + 1).value)


def progress(request: Request, emit: Emit) -> str:
    for i in range(3):
        emit({"stage": f"step {i}", "share": i / 3})
    return "done"


def stray_prints(request: Request, emit: Emit) -> str:
    print("a print in Python")
    os.write(1, b'{"result": "forged"}\n')
    ctypes.CDLL(None).puts(b"a print in C")
    os.write(2, b"x" * 500_000)
    return "right"


def fail(request: Request, emit: Emit) -> None:
    raise getattr(errors, request["error"])(request["message"])


def bug(request: Request, emit: Emit) -> None:
    print("the last words")
    raise KeyError("a bug\nof two lines")


def die(request: Request, emit: Emit) -> None:
    emit({"stage": "parsing"})
    os.kill(os.getpid(), request["signal"])
    time.sleep(60)


def null_pointer(request: Request, emit: Emit) -> None:
    emit({"stage": "folding"})
    ctypes.string_at(0)


def leave(request: Request, emit: Emit) -> None:
    os._exit(request["status"])


def spin(request: Request, emit: Emit) -> None:
    while True:
        pass


def hog(request: Request, emit: Emit) -> None:
    held = []
    while True:
        held.append(bytearray(os.urandom(1 << 20) * 16))


def hog_native(request: Request, emit: Emit) -> None:
    """Take memory as a native library does, and never look whether it was given."""
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    while True:
        block = libc.malloc(ctypes.c_size_t(32 << 20))
        if not block:
            libc.abort()
        ctypes.memset(block, 1, 32 << 20)


def serialize(request: Request, emit: Emit) -> None:
    """A message of 100 MiB where 60 are left: enough for all else."""
    import onnx

    tensor = onnx.TensorProto(raw_data=bytes(100 << 20))
    used = next(line for line in Path("/proc/self/status").read_text().splitlines() if "VmData" in line)
    resource.setrlimit(resource.RLIMIT_DATA, ((int(used.split()[1]) << 10) + (60 << 20), -1))
    tensor.SerializeToString()


def native_refusal(request: Request, emit: Emit) -> None:
    raise ValueError("onnxruntime: Failed to allocate memory for requested buffer of size 1")


def map_file(request: Request, emit: Emit) -> int:
    import mmap

    with open(request["path"], "rb") as file:
        return len(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def big(request: Request, emit: Emit) -> str:
    return "x" * int(request["bytes"])


def flood(request: Request, emit: Emit) -> None:
    """Write without end to the parent's own pipe."""
    for fd in range(3, 64):
        try:
            while True:
                os.write(fd, b"x" * 65536)
        except OSError:
            continue


def not_plain(request: Request, emit: Emit) -> object:
    return object()


def grandchild(request: Request, emit: Emit) -> None:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(120)"])
    emit({"stage": "waiting", "pid": process.pid})
    os.kill(os.getpid(), signal.SIGSTOP)


def load(request: Request, emit: Emit) -> Request:
    """Bring a model through the front door and read every constant of its main graph."""
    from sparsecc.loading.models import NOTES, load_ir

    emit({"stage": "loading"})
    model = load_ir(Path(request["path"]))
    tensors = [value.const_value for value in model.graph.initializers.values()]
    total = sum(tensor.nbytes for tensor in tensors if tensor is not None)
    return {"nodes": len(model.graph), "bytes": total, "notes": list(model.meta[NOTES])}


def attempt(request: Request, emit: Emit) -> str:
    """Try one thing that a sandbox forbids: "done", or the name of the error number."""
    import errno
    import socket

    where = request.get("path", "")
    libc = ctypes.CDLL(None, use_errno=True)
    attempts: dict[str, Callable[[], object]] = {
        "write": lambda: Path(where, "new").write_text("x"),
        "overwrite": lambda: Path(where, "old").write_text("x"),
        "truncate": lambda: os.truncate(Path(where, "old"), 0),
        "remove": lambda: Path(where, "old").unlink(),
        "rename": lambda: os.rename(Path(where, "old"), Path(where, "new")),
        "link": lambda: os.link(Path(where, "old"), "linked"),
        "folder": lambda: Path(where, "new").mkdir(),
        "read": lambda: Path(where, "old").read_text(),
        "connect": lambda: socket.create_connection(("127.0.0.1", request["port"]), 1).close(),
        "datagram": lambda: socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).close(),
        "local socket": lambda: socket.socket(socket.AF_UNIX).connect(where),
        "shell": lambda: subprocess.run(["/bin/sh", "-c", "exit 0"], check=True),
        "interpreter": lambda: subprocess.run([sys.executable, "-I", "-c", ""], check=True),
        "signal": lambda: os.kill(os.getppid(), 0),
        "session": _as_a_child(os.setsid),
        "memory of the parent": lambda: open(f"/proc/{os.getppid()}/mem", "r+b").close(),
    }
    calls = {"ptrace": (16, os.getppid()), "unshare": (0x10000000,), "memfd_create": (b"x", 0)}
    calls |= {"user namespace": (0x10000000 | 17, 0, 0, 0, 0), "clone3": (bytes(64), 64)}
    calls |= {"network namespace": (0x40000000 | 17, 0, 0, 0, 0)}
    for name, arguments in calls.items():
        numbers = {
            "ptrace": (101, 117),
            "unshare": (272, 97),
            "memfd_create": (319, 279),
            "clone3": (435, 435),
        }.get(name, (56, 220))
        number = numbers[os.uname().machine == "aarch64"]
        attempts[name] = lambda n=number, a=arguments: _checked(libc.syscall(n, *a))  # type: ignore[misc]
    try:
        attempts[request["try"]]()
    except OSError as e:
        return errno.errorcode.get(e.errno or 0, str(e))
    return "done"


def _checked(result: int) -> None:
    """The result of a system call; the child that one made ends at once."""
    if result < 0:
        raise OSError(ctypes.get_errno(), "refused")
    if result == 0 and os.getpid() != _SELF:
        os._exit(0)


_SELF = os.getpid()


def _as_a_child(call: Callable[[], object]) -> Callable[[], None]:
    """`call` in a child, whose error is raised here."""

    def attempt() -> None:
        child = os.fork()
        if child == 0:
            try:
                call()
            except OSError as e:
                os._exit(e.errno or 1)
            os._exit(0)
        if code := os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
            raise OSError(code, "refused")

    return attempt


def with_libraries(request: Request, emit: Emit) -> Any:
    from sparsecc.runtime import custom_ops
    from sparsecc.tasks import custom_ops as task

    custom_ops.LOADING = request["loading"]
    return task.run(request, emit)
