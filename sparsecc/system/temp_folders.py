"""Folders and drafts of files that vanish with the process that made them: each is locked while it lives, and what a
killed process left is swept by the next one."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from sparsecc.errors import SystemFailureError
from sparsecc.escaping import one_line

_MARK = ".sparsecc-"
STEMS = ("worker", "search", "input", "device", "scratch")
"""What we make in the system's temporary folder, which for a worker is its own folder: a worker's files, the points
of a search, models handed in from memory, this machine as a device, and what one step needs."""


@contextlib.contextmanager
def temporary_folder(stem: str) -> Iterator[Path]:
    """A folder of one of `STEMS` that is there for as long as the block."""
    folder, lock = locked_temporary(stem)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def locked_temporary(stem: str) -> tuple[Path, int]:
    """A new folder of one of `STEMS` and its lock, after those of dead processes were swept, of whatever stem.

    SystemFailureError where no folder can be made.
    """
    where = Path(tempfile.gettempdir())
    try:
        for left in STEMS:
            sweep_folders(where, left)
        return locked_folder(where, stem)
    except OSError as e:
        raise SystemFailureError(f"cannot make a temporary folder in {where}: {one_line(str(e))}") from e


def locked_folder(parent: Path, stem: str) -> tuple[Path, int]:
    """A new folder (0700) in `parent` and the lock on it, held until that file descriptor is closed."""
    while True:
        folder = _new_name(parent, stem)
        os.mkdir(folder, 0o700)
        try:
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue  # another run took it for litter already: take another name
        if _is_held(lock, folder):
            return folder, lock
        os.close(lock)  # the same, between that step and this


def locked_file(parent: Path, stem: str, mode: int) -> tuple[Path, int]:
    """A new empty file in `parent`, open for writing, and locked as long as that file descriptor is."""
    while True:
        file = _new_name(parent, stem)
        lock = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        if _is_held(lock, file):
            return file, lock
        os.close(lock)


def sweep_folders(parent: Path, stem: str) -> list[str]:
    """Remove the folders of that stem whose process is gone; returns their names. A living process holds a
    lock on its folder, which the system lets go when it dies."""
    return _sweep(parent, stem, stat.S_IFDIR, shutil.rmtree)


def sweep_files(parent: Path, stem: str) -> list[str]:
    """As `sweep_folders`, for files."""
    return _sweep(parent, stem, stat.S_IFREG, os.unlink)


def sweep_left(parent: Path) -> None:
    """Remove every folder and file that a killed process of ours left in `parent`, whatever its stem; quietly nothing
    where the folder cannot be read."""
    with contextlib.suppress(OSError):
        _sweep(parent, None, stat.S_IFDIR, shutil.rmtree)
        _sweep(parent, None, stat.S_IFREG, os.unlink)


def _new_name(parent: Path, stem: str) -> Path:
    return parent / f".{stem}{_MARK}{secrets.token_hex(8)}"


def _is_held(lock: int, path: Path) -> bool:
    """Whether the lock is ours now and the path still leads to it: nobody sweeps it any more."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(lock), os.stat(path))
    except OSError as e:
        # any other: a file system without such locks, where nobody can sweep either
        return e.errno not in (errno.EWOULDBLOCK, errno.ENOENT)


def _sweep(parent: Path, stem: str | None, kind: int, remove: Callable[[str], None]) -> list[str]:
    name = re.escape(stem) if stem is not None else ".+"
    pattern = re.compile(rf"\.{name}{re.escape(_MARK)}[0-9a-f]{{16}}", re.DOTALL)
    swept = []
    for entry in os.scandir(parent):
        if not pattern.fullmatch(entry.name):
            continue
        with contextlib.suppress(OSError):
            lock = os.open(entry.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                facts = os.fstat(lock)
                if stat.S_IFMT(facts.st_mode) == kind and facts.st_uid == os.geteuid():
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    remove(entry.path)
                    swept.append(entry.name)
            finally:
                os.close(lock)
    return swept
