"""Libraries of the user's own operators: every session here is made with those of the task under way.

They are programs, which the command line or a Python call names and no file does. The interface is that of ONNX
Runtime's custom operators (`RegisterCustomOps`).
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

import onnxruntime as ort

from sparsecc.errors import InputError
from sparsecc.escaping import quoted
from sparsecc.runtime.reasons import plain_reason
from sparsecc.system.process import end_after

LOADING = 30.0
"""Seconds after which the kernel ends a process in which a library still loads: nothing in it can."""
_LIBRARIES: ContextVar[tuple[str, ...]] = ContextVar("libraries", default=())


def libraries() -> tuple[str, ...]:
    """The absolute paths of the libraries in use."""
    return _LIBRARIES.get()


def register(options: ort.SessionOptions) -> None:
    """Give a session that is to be made the operators of these libraries."""
    for library in libraries():
        options.register_custom_ops_library(library)


@contextmanager
def loaded(paths: Sequence[str], begin: Callable[[str], None] = lambda path: None) -> Iterator[None]:
    """Inside, sessions have the operators of these libraries. InputError for one that ONNX Runtime does not load.
    `begin` hears of each before it is loaded."""
    whole = tuple(str(Path(path).absolute()) for path in paths)
    for path in whole:
        begin(path)
        _require_loads(path)
    before = _LIBRARIES.set(whole)
    try:
        yield
    finally:
        _LIBRARIES.reset(before)


def _require_loads(path: str) -> None:
    from sparsecc.runtime.session import RuntimeFailure  # which asks for the libraries here

    if not Path(path).is_file():
        raise InputError(f"--custom-ops {quoted(path)}: no such file: check the path")
    left, _ = signal.setitimer(signal.ITIMER_REAL, LOADING)
    try:
        ort.SessionOptions().register_custom_ops_library(path)
    except RuntimeFailure as e:
        raise InputError(
            f"--custom-ops {quoted(path)}: ONNX Runtime {ort.__version__} does not load it: {plain_reason(e)}: "
            "give a library built for this machine that exports RegisterCustomOps"
        ) from e
    finally:
        end_after(left)
