"""The points of a search on disk: one JSON line each, brought to disk when it is finished."""

from __future__ import annotations

import fcntl
import json
import os
import re
import stat
from dataclasses import fields
from pathlib import Path
from types import TracebackType
from typing import Any

from sparsecc.decide.goals import Trial
from sparsecc.errors import InputError, SystemFailureError
from sparsecc.escaping import one_line

NAME = "points.jsonl"
LARGEST = 256 << 20
"""Bytes of a ledger that we are ready to read."""
LARGEST_NUMBER = 1e30
RETRIED = frozenset({"WorkerError", "SystemFailureError", "UnavailableError"})
"""Failures that say nothing about the point: it is tried again."""

_FIELDS = {one.name for one in fields(Trial)}
_FLAGS = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Ledger:
    """A context manager; one search at a time may write. What a kill cut off in mid-line is dropped."""

    def __init__(self, folder: Path, model_sha256: str) -> None:
        self.path = folder / NAME
        self.model = model_sha256
        self.rows: dict[str, dict[str, Any]] = {}
        self._file = -1

    def __enter__(self) -> Ledger:
        if (
            self.path.parent.is_symlink()
        ):  # the model's folder, and the default name in it, may be a stranger's
            raise InputError(f"{self.path.parent} is a link: name the folder that it leads to with -o")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self.path, _FLAGS, 0o644)
        except OSError as e:
            raise _failure(self.path, e) from e
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            os.close(self._file)
            raise InputError(
                f"{self.path.parent}: another search is writing there: wait, or give another -o"
            ) from e
        try:
            self._read()
        except InputError:
            os.close(self._file)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._file)

    def add(self, row: dict[str, Any]) -> None:
        """Write a finished point and bring it to disk."""
        self.rows[row["id"]] = row
        line = json.dumps(row, sort_keys=True).encode() + b"\n"
        try:
            while line:
                line = line[os.write(self._file, line) :]
            os.fsync(self._file)
        except OSError as e:
            raise _failure(self.path, e) from e

    def has(self, name: str) -> bool:
        """Whether a point need not be made again."""
        row = self.rows.get(name)
        return row is not None and row.get("kind") not in RETRIED

    def _read(self) -> None:
        with open(self._file, "rb", closefd=False) as file:
            if not stat.S_ISREG(os.fstat(self._file).st_mode):
                raise InputError(f"{self.path} is no plain file: give another -o")
            content = file.read(LARGEST + 1)
        if len(content) > LARGEST:
            raise InputError(f"{self.path} is over {LARGEST >> 20} MiB: give another -o")
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.ftruncate(self._file, whole)
        for number, line in enumerate(content[:whole].splitlines(), 1):
            row = _row(line)
            if row is None:
                raise InputError(f"{self.path}, line {number} is no point of a search: give another -o")
            if row["model_sha256"] != self.model:
                raise InputError(f"{self.path.parent} holds the search of another model: give another -o")
            self.rows[row["id"]] = row


def _row(line: bytes) -> dict[str, Any] | None:
    """A point, whoever wrote the line; None for a line that holds none."""
    try:
        row = json.loads(line)
        json.dumps(row, allow_nan=False)
    except (ValueError, RecursionError):
        return None
    sound = isinstance(row, dict) and _is_named(row)
    return row if sound and (isinstance(row.get("error"), str) or _is_made(row)) else None


def _is_named(row: dict[str, Any]) -> bool:
    """Whether it says which point it is; its id becomes the name of a file."""
    name, options = row.get("id"), row.get("options")
    return (
        isinstance(name, str)
        and re.fullmatch("[0-9a-f]{1,64}", name) is not None
        and isinstance(row.get("model_sha256"), str)
        and isinstance(options, dict)
        and _is_number(options.get("ratio"))
        and all(map(_is_value, options.values()))
    )


def _is_value(value: Any) -> bool:
    """Whether it may be the value of an option that a search varies: a word, words, or words by name."""
    if isinstance(value, dict | list):
        return all(isinstance(one, str) for one in (value.values() if isinstance(value, dict) else value))
    return isinstance(value, str | int | float)


def _is_made(row: dict[str, Any]) -> bool:
    """Whether it holds its recipe, and the figures of a trial."""
    trial, chosen = row.get("trial"), row.get("chosen")
    if not (isinstance(trial, dict) and isinstance(chosen, dict) and isinstance(row.get("recipe"), dict)):
        return False
    others = {"levers", "ci95", "serving", "held", "sha256"}
    figures = [value for name, value in trial.items() if name not in others and not isinstance(value, bool)]
    ends = trial.get("ci95", [0, 0])
    return (
        {"ratio", "removed", "bytes", "dense_bytes"} <= set(trial) <= _FIELDS
        and all(map(_is_number, figures))
        and min(trial["bytes"], trial["dense_bytes"], trial.get("speedup", 1)) > 0
        and isinstance(ends, list)
        and len(ends) == 2
        and all(map(_is_number, ends))
        and isinstance(trial.get("levers", {}), dict)
        and all(isinstance(trial.get(name, ""), str) for name in ("held", "sha256"))
        and all(map(_is_value, trial.get("levers", {}).values()))
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < LARGEST_NUMBER


def _failure(path: Path, error: OSError) -> SystemFailureError:
    why = one_line(error.strerror or str(error), 120)
    return SystemFailureError(f"cannot write {path}: {why}; choose another -o or free the disk")
