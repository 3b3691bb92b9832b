"""Progress in a notebook: one line under the cell, which changes as the work goes on."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from sparsecc.escaping import one_line

EVERY = 0.2
"""Seconds between two changes of the line."""


def progress() -> Callable[[Mapping[str, Any]], None] | None:
    """What hears of events and shows them; None where no notebook runs us."""
    ipython: Any = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    if shell is None or not hasattr(shell, "kernel"):
        return None
    handle = ipython.display.display({"text/plain": "sparsecc: starting"}, raw=True, display_id=True)
    shown = time.monotonic()

    def on_event(event: Mapping[str, Any]) -> None:
        nonlocal shown
        is_said = "say" in event
        if not is_said and time.monotonic() - shown < EVERY:
            return
        shown = time.monotonic()
        text = one_line(str(event["say"] if is_said else event.get("stage", "working")), 120)
        handle.update({"text/plain": f"sparsecc: {float(event.get('share', 0.0)):4.0%} {text}"}, raw=True)

    return on_event
