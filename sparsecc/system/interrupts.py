"""Signals that end a command: each unwinds it as an exception, so that workers end and folders are removed."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
ECHO_SECONDS = 1.0
"""A signal that comes again so soon is the same one: `timeout` sends its own twice, to us and to our group."""


class Interrupted(BaseException):
    """A signal arrived. No KeyboardInterrupt, which libraries on the way out answer in their own words."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.name = signal.Signals(number).name
        self.exit_code = 128 + number


@contextmanager
def interrupts() -> Iterator[None]:
    """Inside the block the first of `SIGNALS` raises Interrupted; one that comes later ends the process at once.

    Signals that the caller ignores (`nohup`) or handles itself stay as they are; so do all outside the main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    began: float | None = None

    def answer(number: int, frame: FrameType | None) -> None:
        nonlocal began
        now = time.monotonic()
        if began is None:
            began = now
            raise Interrupted(number)
        if now - began > ECHO_SECONDS:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    defaults = (signal.SIG_DFL, signal.default_int_handler)
    before = {number: signal.getsignal(number) for number in SIGNALS}
    ours = [number for number in SIGNALS if before[number] in defaults]
    for number in ours:
        signal.signal(number, answer)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, before[number])
