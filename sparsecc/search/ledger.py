"""The points of a search on disk: one JSON line each, brought to disk when it is finished."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any

from sparsecc.errors import InputError, SystemFailureError
from sparsecc.escaping import one_line

NAME = "points.jsonl"
RETRIED = frozenset({"WorkerError", "SystemFailureError", "UnavailableError"})
"""Failures that say nothing about the point: it is tried again."""


class Ledger:
    """A context manager; one search at a time may write. What a kill cut off in mid-line is dropped."""

    def __init__(self, folder: Path, model_sha256: str) -> None:
        self.path = folder / NAME
        self.model = model_sha256
        self.rows: dict[str, dict[str, Any]] = {}
        self._file = -1

    def __enter__(self) -> Ledger:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
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
        content = self.path.read_bytes()
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
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    wanted = {"id": str, "model_sha256": str, "options": dict}
    sound = isinstance(row, dict) and all(isinstance(row.get(k), kind) for k, kind in wanted.items())
    return row if sound else None


def _failure(path: Path, error: OSError) -> SystemFailureError:
    why = one_line(error.strerror or str(error), 120)
    return SystemFailureError(f"cannot write {path}: {why}; choose another -o or free the disk")
