"""What a command was asked and did so far: the lines of `--log-json`, and the folder that `--debug` keeps."""

from __future__ import annotations

import json
import os
import shlex
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import click

from sparsecc.cli.streams import say
from sparsecc.errors import SparseccError

DEBUG = "On an error, show the traceback and keep a folder for a bug report."
"""The help of `--debug`."""
KEPT = 2000
"""Events that are remembered, the latest ones."""
FILES = ("command.txt", "recipe.json", "versions.json", "log.jsonl", "traceback.txt")
"""What a debug folder holds: words and numbers of ours, no byte of a model or of samples."""


@dataclass
class Trail:
    """One run of the command line. `options` are those that a command was given, by name."""

    arguments: Sequence[str]
    options: dict[str, Any] = field(default_factory=dict)
    events: list[dict[str, Any]] = field(default_factory=list)

    outputs: dict[str, tuple[int, ...] | None] = field(default_factory=dict)
    """Paths that the command is about to write -> what was there before."""

    def will_write(self, path: str | os.PathLike[str]) -> None:
        """From here on a message says whether `path` was written: a bundle's folder, or a file."""
        self.outputs[os.fspath(path)] = _identity(path)

    def written(self) -> list[str]:
        """Those of the outputs that are others than before."""
        return [path for path, before in self.outputs.items() if _identity(path) != before]

    def what_was_written(self) -> str:
        """The end of a message about a command that was ended."""
        written = self.written()
        if not written:
            return "nothing was written"
        return f"{' and '.join(written)} {'were' if len(written) > 1 else 'was'} already written"

    @property
    def speaks_json(self) -> bool:
        """Whether stderr gets one JSON object a line."""
        return "--log-json" in self.arguments

    @property
    def keeps_debug(self) -> bool:
        """Whether a failure leaves a folder, and shows its traceback."""
        return "--debug" in self.arguments

    def add(self, level: str, facts: Mapping[str, Any]) -> None:
        """Remember one event and, where asked, write its line."""
        now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        event = {"time": now, "level": level, **facts}
        self.events = [*self.events[-KEPT + 1 :], event]
        if self.speaks_json:
            say(json.dumps(event, default=str))

    def say(self, level: str, line: str, **facts: Any) -> None:
        """One line on stderr, as text or as JSON."""
        self.add(level, {**facts, "message": line})
        if not self.speaks_json:
            start = "error: " if level == "error" else ""
            say(f"sparsecc: {start}{line}")

    def write_debug(self) -> Path | None:
        """Write the folder about the exception that is being handled; None where no folder can be written."""
        from sparsecc.system.versions import versions
        from sparsecc.worker.crash import crash_folder

        where = {"system": sys.platform, "machine": os.uname().machine, **versions()}
        texts = (
            shlex.join(["sparsecc", *self.arguments]),
            json.dumps(self.options, indent=1, default=str, sort_keys=True),
            json.dumps(where, indent=1),
            "".join(json.dumps(event, default=str) + "\n" for event in self.events).rstrip("\n"),
            traceback_here(),
        )
        try:
            crash_folder().mkdir(parents=True, exist_ok=True, mode=0o700)
            folder = Path(tempfile.mkdtemp(prefix="debug-", dir=crash_folder()))
            for name, text in zip(FILES, texts, strict=True):
                (folder / name).write_text(text + "\n", "utf-8", errors="backslashreplace")
        except (OSError, RuntimeError):  # no home, no room: the error itself still reaches the user
            return None
        return folder


def _identity(path: str | os.PathLike[str]) -> tuple[int, ...] | None:
    """What changes when a file or folder is replaced; None where there is none."""
    try:
        facts = os.stat(path)
    except OSError:
        return None
    return facts.st_dev, facts.st_ino, *((facts.st_mtime_ns, facts.st_size) if os.path.isfile(path) else ())


def trail() -> Trail:
    """That of the command under way; one of its own where there is none."""
    context = click.get_current_context(silent=True)
    found = context.find_object(Trail) if context is not None else None
    return found if found is not None else Trail(())


def traceback_here() -> str:
    """The traceback of the exception that is handled, behind that of the worker it comes from."""
    error = sys.exc_info()[1]
    there = error.in_worker if isinstance(error, SparseccError) else ""
    return f"{there}{traceback.format_exc()}".rstrip("\n")
