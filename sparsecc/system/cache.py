"""The user's cache: what was built once, by the hash of all that went into it. Many processes may share it.

An entry is published by one rename and read with its hash checked, so there is no lock to wait for: a reader
sees a whole entry or none, and a damaged one is a miss that removes itself. What was used longest ago makes room
for what is new.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import stat
import time
from pathlib import Path

from sparsecc.errors import SystemFailureError
from sparsecc.escaping import one_line

ENTRY_LIMIT = 4 << 30
"""Bytes of one entry."""
LIMIT = 4 << 30
"""Bytes of all entries."""

_MAGIC = b"sparsecc.cache/1\n"
_UNFINISHED = ".new-"
_STALE_SECONDS = 24 * 3600.0
_READ_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def cache_folder() -> Path:
    """$XDG_CACHE_HOME/sparsecc, or ~/.cache/sparsecc."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "sparsecc"


class Cache:
    """A content-addressed store in a folder that only the user can enter (0700).

    Keys are any text that names all that went into a value; only their hash reaches the disk. Entries beyond
    `limit` bytes in all go, those used longest ago first, whenever one is stored.
    SystemFailureError when the folder cannot be made, or belongs to someone else.
    """

    def __init__(self, root: Path | None = None, limit: int = LIMIT) -> None:
        self.root = cache_folder() if root is None else root
        self.limit = limit
        self._held: int | None = None
        try:
            self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
            facts = os.stat(self.root)
            if facts.st_uid == os.geteuid() and facts.st_mode & 0o077:
                os.chmod(self.root, 0o700)
        except OSError as e:
            raise self._failure(e) from e
        if facts.st_uid != os.geteuid():
            shown = one_line(str(self.root), 120)
            raise SystemFailureError(f"the cache {shown} belongs to another user: set XDG_CACHE_HOME")
        self._sweep()

    def get(self, key: str) -> bytes | None:
        """The value under `key`, its hash checked; None when there is none. A damaged one is removed."""
        path = self._path(key)
        try:
            fd = os.open(path, _READ_FLAGS)
        except OSError:
            return None
        with os.fdopen(fd, "rb") as file:
            facts = os.fstat(fd)
            sound = (
                stat.S_ISREG(facts.st_mode) and facts.st_uid == os.geteuid() and facts.st_size <= ENTRY_LIMIT
            )
            entry = file.read() if sound else b""
        head = len(_MAGIC) + 32
        value = entry[head:]
        if sound and entry[:head] == _head(key, value):
            with contextlib.suppress(OSError):
                os.utime(path)  # its place among those used longest ago
            return value
        with contextlib.suppress(OSError):
            os.unlink(path)
        return None

    def put(self, key: str, value: bytes) -> None:
        """Store `value` under `key`; another process's value for the same key is replaced whole.

        SystemFailureError when the disk refuses; the cache is then as before.
        """
        path = self._path(key)
        temporary = path.parent / f"{_UNFINISHED}{secrets.token_hex(8)}"
        try:
            path.parent.mkdir(exist_ok=True, mode=0o700)
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(fd, "wb") as file:
                file.write(_head(key, value))
                file.write(value)
                file.flush()
                os.fsync(fd)
            os.replace(temporary, path)
        except OSError as e:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise self._failure(e) from e
        self._make_room(len(value) + len(_MAGIC) + 32)

    def held(self) -> tuple[int, int]:
        """How many entries there are, and their bytes."""
        sizes = [size for _, size, _ in self._entries()]
        return len(sizes), sum(sizes)

    def _make_room(self, added: int) -> None:
        """Trim once what this process knows of is over the limit; others' entries are seen when it looks."""
        self._held = self.held()[1] if self._held is None else self._held + added
        if self._held > self.limit:
            self.trim(self.limit)
            self._held = None

    def _entries(self) -> list[tuple[int, int, Path]]:
        """(last use in ns, bytes, path) of every entry; files that are still being written are none."""
        found = []
        for path in self.root.glob("??/*"):
            with contextlib.suppress(OSError):
                facts = path.lstat()
                if not path.name.startswith(_UNFINISHED):
                    found.append((facts.st_mtime_ns, facts.st_size, path))
        return found

    def trim(self, limit: int) -> None:
        """Remove what was used longest ago until at most `limit` bytes are left."""
        entries = self._entries()
        left = sum(size for _, size, _ in entries)
        for _, size, path in sorted(entries):
            if left <= limit:
                return
            with contextlib.suppress(OSError):
                path.unlink()
            left -= size

    def drop(self, key: str) -> None:
        """Remove the value under `key`, if there is one."""
        with contextlib.suppress(OSError):
            os.unlink(self._path(key))

    def _path(self, key: str) -> Path:
        digest = hashlib.sha256(key.encode()).hexdigest()
        return self.root / digest[:2] / digest[2:]

    def _sweep(self) -> None:
        """Remove what killed writers left a day ago or more."""
        horizon = time.time() - _STALE_SECONDS
        for left in self.root.glob(f"??/{_UNFINISHED}*"):
            with contextlib.suppress(OSError):
                if left.lstat().st_mtime < horizon:
                    left.unlink()

    def _failure(self, error: OSError) -> SystemFailureError:
        why = one_line(error.strerror or str(error), 120)
        shown = one_line(str(self.root), 120)
        return SystemFailureError(f"cannot write the cache {shown}: {why}; set XDG_CACHE_HOME")


def _head(key: str, value: bytes) -> bytes:
    """What stands before a value: hash of key and value together, so that no entry passes for another's."""
    digest = hashlib.sha256(hashlib.sha256(key.encode()).digest())
    digest.update(value)
    return _MAGIC + digest.digest()


def rooms() -> dict[str, Cache]:
    """The caches in the user's folder by name: `measurements` at its top, and those in folders of their own."""
    top = Cache()
    inner = sorted(p for p in top.root.iterdir() if len(p.name) > 2 and p.is_dir() and not p.is_symlink())
    return {"measurements": top, **{folder.name: Cache(folder) for folder in inner}}
