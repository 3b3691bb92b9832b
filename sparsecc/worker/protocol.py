"""What parent and child of a worker say to each other: JSON lines over two pipes of their own.

parent -> child   {"task": "package.module:function", "request": {...}}
child -> parent   {"event": {...}}* and {"ask": {...}}*, each of these answered by
parent -> child   {"reply": {...}}
child -> parent   at last one of
                  {"result": ...}
                  {"error": class name, "message": one line, "traceback": text}     a SparseccError
                  {"memory": true}                               a MemoryError
                  {"fault": one line, "traceback": text}         anything else
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

import sparsecc.errors as errors  # not from the package: what it imports is no code of a calibration
from sparsecc.escaping import one_line

EVENT_LIMIT = 1 << 20
"""Bytes of one event line."""

RESULT_LIMIT = 64 << 20
"""Bytes of one line of any kind: the result is plain data, arrays travel in files."""

OUT_OF_MEMORY = (
    *("bad_alloc", "bad allocation", "MemoryError", "Failed to allocate memory", "Cannot allocate memory"),
    *("Memory allocation still failed", "failed to map segment", "cannot allocate memory"),
    "Failed to serialize proto",  # protobuf, whoever writes: it names no reason, and depth and size are bounded before
)
"""What native libraries and the loader call it when an allocation failed."""

_TASK = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z]\w*", re.ASCII)


def is_task(task: str, allowed: Collection[str]) -> bool:
    """Whether `task` reads `package.module:function` with its package among `allowed`."""
    return bool(_TASK.fullmatch(task)) and task.split(":")[0].split(".")[0] in allowed


def error_named(name: Any, message: Any, trace: str) -> errors.SparseccError:
    """The error a child reported, by the name of its class: one of `sparsecc.errors`, else InternalError."""
    kind = getattr(errors, str(name), None)
    is_ours = isinstance(kind, type) and issubclass(kind, errors.SparseccError)
    of: type[errors.SparseccError] = kind if is_ours and kind is not None else errors.InternalError
    error = of(one_line(str(message), 2000))
    error.in_worker = trace
    return error
