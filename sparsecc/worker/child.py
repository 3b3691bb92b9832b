"""The child's side of a worker: set the limits, then serve tasks until the request pipe closes."""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import importlib
import json
import mmap
import os
import sys
import threading
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from sparsecc.errors import SparseccError, SystemFailureError
from sparsecc.system import sandbox
from sparsecc.system.process import GRACE, end_after
from sparsecc.system.user_code import error_of
from sparsecc.worker import asking
from sparsecc.worker.protocol import EVENT_LIMIT, OUT_OF_MEMORY, RESULT_LIMIT, is_task

_HEADROOM = 32 << 20
"""Bytes that must still be there for a fault not to be one of memory."""


def serve(config: dict[str, Any]) -> None:
    """Serve requests until the pipe closes, then end at once: what this process wrote is in the parent's hands.

    File descriptors 1 and 2 already lead to the parent's log.
    """
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as score:
        score.write("500")  # the kernel's first victim, before the user's own programs
    faulthandler.enable()
    for fd in (config["requests"], config["events"]):
        os.set_inheritable(fd, False)
    channel = _Channel(os.fdopen(config["events"], "wb", buffering=0))
    room = _Room(config["folder"], config["write"])
    with os.fdopen(config["requests"], "rb") as requests:
        asking.listen(lambda question: channel.ask(question, requests))
        for line in requests:
            answer = _answer(json.loads(line), config["allowed"], channel, room)
            sys.stdout.flush()
            channel.send(answer, RESULT_LIMIT)
    sys.stderr.flush()
    os._exit(0)


class _Channel:
    """Whole lines to the parent, from any thread."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._lock = threading.Lock()

    def emit(self, event: dict[str, Any]) -> None:
        self.send({"event": event}, EVENT_LIMIT)

    def ask(self, question: asking.Question, requests: BinaryIO) -> asking.Reply:
        """The parent's reply, which comes on the pipe of requests."""
        self.send({"ask": question}, EVENT_LIMIT)
        reply: asking.Reply = json.loads(requests.readline())["reply"]
        return reply

    def send(self, message: dict[str, Any], limit: int) -> None:
        line = json.dumps(message).encode() + b"\n"
        if len(line) > limit:
            line = json.dumps({"fault": f"a message of {len(line)} bytes is over {limit}"}).encode() + b"\n"
        with self._lock:
            view = memoryview(line)
            while view:
                view = view[self._stream.write(view) :]


@dataclass
class _Room:
    """Where tasks run: in the caller's folder, for what its paths mean, and in the sandbox, once code is loaded.

    `write` are the folders that the sandbox leaves open; None: there is none.
    """

    folder: str | None
    write: list[str] | None
    is_entered: bool = False

    def enter(self) -> None:
        """Before the first task: our modules are imported by then, no file of the user's has been opened."""
        if self.is_entered:
            return
        if self.write is not None:
            sandbox.enter(map(Path, self.write))
        if self.folder is not None:
            os.chdir(self.folder)
        self.is_entered = True


def _answer(message: dict[str, Any], allowed: list[str], channel: _Channel, room: _Room) -> dict[str, Any]:
    try:
        if not is_task(message["task"], allowed):
            return {"fault": f"'{message['task']}' is not a task"}
        module, _, function = message["task"].partition(":")
        work = getattr(importlib.import_module(module), function)
        room.enter()
        end_after(message["seconds"] + GRACE)
        return _plain({"result": work(message["request"], channel.emit)})
    except SparseccError as e:
        return {"error": type(e).__name__, "message": str(e), "traceback": _traced(e)}
    except MemoryError:
        return {"memory": True}
    except Exception as e:  # noqa: BLE001  the process boundary: whatever it is becomes a message
        if any(phrase in str(e) for phrase in OUT_OF_MEMORY) or _is_starved():
            return {"memory": True}
        if isinstance(e, OSError) and _is_full(e):
            return {"error": SystemFailureError.__name__, "message": _FULL, "traceback": _traced(e)}
        if (theirs := error_of(e)) is not None:
            return {"error": type(theirs).__name__, "message": str(theirs), "traceback": _traced(e)}
        return {"fault": f"{type(e).__name__}: {e}", "traceback": _traced(e)}
    finally:
        end_after(0)


_FULL = f"{os.strerror(errno.ENOSPC)}: free some of the disk, or set TMPDIR to a folder with room, and run it again"


def _is_full(error: OSError) -> bool:
    """Whether the disk took no more; numpy tells how much it wrote, and no number of an error."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT) or " requested and " in str(error)


def _is_starved() -> bool:
    """Whether hardly anything can be allocated any more: what fails then fails for that, whatever it says."""
    try:
        mmap.mmap(-1, _HEADROOM, flags=mmap.MAP_PRIVATE).close()
    except OSError:
        return True
    return False


def _traced(error: Exception) -> str:
    return "".join(traceback.format_exception(error))[-65536:]


def _plain(message: dict[str, Any]) -> dict[str, Any]:
    """The message, once it is known to be plain data: the fault must fall to the task, not to the channel."""
    json.dumps(message)
    return message
