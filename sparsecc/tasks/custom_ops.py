"""A task with the user's own operators: their libraries are loaded in the worker, for this task alone."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from sparsecc.errors import InputError, InternalError
from sparsecc.escaping import quoted
from sparsecc.runtime import custom_ops
from sparsecc.runtime.operator_outputs import OperatorOutputs
from sparsecc.shapes.custom_ops import RUN
from sparsecc.system.progress import Emit
from sparsecc.worker.protocol import is_task


def run(request: dict[str, Any], emit: Emit) -> Any:
    """`request["task"]` on `request["request"]`, with the libraries `request["libraries"]`."""
    if not is_task(request["task"], ["sparsecc"]):
        raise InternalError(f"'{request['task']}' is not a task")
    inner = request["request"]
    device = (inner.get("options") or inner).get("device") or "local"
    if device != "local":
        raise InputError(
            f"--custom-ops: the library runs on this machine alone: leave it out, or --device {device}"
        )
    module, _, function = request["task"].partition(":")

    def begin(path: str) -> None:
        limit = f"(at most {custom_ops.LOADING:g} s)"
        emit({"stage": f"loading --custom-ops {quoted(Path(path).name)} {limit}", "share": 0.0})

    with custom_ops.loaded(request["libraries"], begin):
        before = RUN.set(OperatorOutputs())
        try:
            return getattr(importlib.import_module(module), function)(inner, emit)
        finally:
            RUN.reset(before)
