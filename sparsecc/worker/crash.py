"""Crash reports: what a failed worker left, in a private folder of the user."""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
from pathlib import Path

KEPT = 20
"""Reports kept; older ones are removed."""
SIGNAL_MEANS = {
    signal.SIGSEGV: "a native library touched memory it must not",
    signal.SIGFPE: "a native library divided by zero",
    signal.SIGABRT: "a native library gave up",
    signal.SIGBUS: "a mapped file changed or shrank under it",
    signal.SIGKILL: "something outside, often the system short of memory, killed it",
    signal.SIGALRM: "it went on past its deadline",
    signal.SIGSYS: "a native library made a system call that the sandbox ends a process for",
}
"""What it mostly means that a signal ended a worker."""


def ended_by(sent: signal.Signals) -> tuple[str, str]:
    """How a signal ended a worker, and what that mostly means; an alarm is our own and no crash."""
    how = "was ended" if sent == signal.SIGALRM else f"crashed ({sent.name})"
    return how, SIGNAL_MEANS.get(sent, "a signal ended it")


def crash_folder() -> Path:
    """$XDG_STATE_HOME/sparsecc/crashes, or ~/.local/state/sparsecc/crashes."""
    state = os.environ.get("XDG_STATE_HOME", "")
    base = Path(state) if os.path.isabs(state) else Path.home() / ".local" / "state"
    return base / "sparsecc" / "crashes"


def write_report(sections: dict[str, str]) -> Path | None:
    """Write a report (readable by the user alone) and return its path; None when no folder can be written."""
    text = "".join(f"== {title}\n{body.rstrip()}\n\n" for title, body in sections.items())
    try:
        folder = crash_folder()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        fd, name = tempfile.mkstemp(prefix="crash-", suffix=".txt", dir=folder)
        with os.fdopen(fd, "w", encoding="utf-8", errors="backslashreplace") as report:
            report.write(text)
        _forget_old(folder)
    except (OSError, RuntimeError):  # no home, no room: the error itself still reaches the user
        return None
    return Path(name)


def _forget_old(folder: Path) -> None:
    with contextlib.suppress(OSError):
        reports = sorted(folder.glob("crash-*.txt"), key=lambda p: p.stat().st_mtime, reverse=True)
        for old in reports[KEPT:]:
            old.unlink(missing_ok=True)
