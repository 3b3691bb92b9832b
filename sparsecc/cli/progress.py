"""Progress on stderr: a bar on a terminal once it takes long, plain lines with -v, otherwise silence."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

from sparsecc.cli.streams import say

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

OnEvent = Callable[[Mapping[str, Any]], None]
"""Called with {"stage": str, "share": float from 0 to 1, "note": str, "say": str}; the last two may be missing."""

PATIENCE = 2.0
"""Seconds of work before a bar appears."""


class Progress:
    """A context manager whose `on_event` may be called from any thread. Silent when both flags are off."""

    def __init__(self, *, lines: bool, bar: bool, patience: float = PATIENCE) -> None:
        self._lines = lines
        self._wants_bar = bar and not lines
        self._lock = threading.Lock()
        self._timer = threading.Timer(patience, self._show)
        self._timer.daemon = True
        self._latest: tuple[str, str, float] = ("working", "", 0.0)
        self._last_line = ""
        self._started = time.monotonic()
        self._bar: RichProgress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Progress:
        if self._wants_bar:
            self._timer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()
        with self._lock:
            self._wants_bar = False
            if self._bar is not None:
                self._bar.stop()

    def on_event(self, event: Mapping[str, Any]) -> None:
        """Take one event of the API."""
        from sparsecc.escaping import one_line

        stage, note = one_line(str(event.get("stage", "working"))), one_line(str(event.get("note") or ""))
        with self._lock:
            self._latest = (stage, note, min(max(float(event.get("share", 0.0)), 0.0), 1.0))
            self._update()
        text = f"{stage}: {note}" if note else stage
        if self._lines and text != self._last_line:
            self._last_line = text
            say(f"sparsecc: [{time.monotonic() - self._started:6.1f} s] {text}")

    def _show(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, SpinnerColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as RichProgress

        with self._lock:
            if not self._wants_bar:
                return
            self._bar = RichProgress(
                SpinnerColumn(),
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=24),
                TaskProgressColumn(),
                TimeElapsedColumn(),
                TextColumn("{task.fields[note]}", markup=False, style="dim"),
                console=Console(stderr=True, markup=False, highlight=False),
                transient=True,
            )
            self._task = self._bar.add_task("working", total=1.0, note="")
            self._update()
            self._bar.start()

    def _update(self) -> None:
        if self._bar is not None and self._task is not None:
            stage, note, share = self._latest
            self._bar.update(self._task, description=stage, completed=share, note=note)
