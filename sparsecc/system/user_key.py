"""This user's own key, by which files that run code when they are loaded are told from those of others.

A message authentication code (HMAC-SHA256, RFC 2104) beside a file says that a process of this user wrote it. The key
never leaves the config folder, so neither a bundle nor a restored cache can bring a code that holds.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import secrets
import stat
from pathlib import Path

from sparsecc.errors import SystemFailureError
from sparsecc.escaping import one_line, quoted
from sparsecc.system.files import draft_in

_BYTES = 32
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def key_path() -> Path:
    """$XDG_CONFIG_HOME/sparsecc/own.key, or ~/.config/sparsecc/own.key."""
    base = os.environ.get("XDG_CONFIG_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".config") / "sparsecc" / "own.key"


def code_of(purpose: str, *digests: bytes) -> str:
    """The code of a file for a purpose, in hex: nobody without the key can make it for other digests.

    SystemFailureError when the key can neither be read nor made, or is not private to this user (0600).
    """
    message = purpose.encode() + b"\0" + b"".join(hashlib.sha256(one).digest() for one in digests)
    return hmac.new(_key(), message, hashlib.sha256).hexdigest()


def is_code(said: str, purpose: str, *digests: bytes) -> bool:
    """Whether `said` is `code_of` these; false without making a key where this user has none."""
    return key_path().exists() and hmac.compare_digest(said.encode(), code_of(purpose, *digests).encode())


def _key() -> bytes:
    path = key_path()
    try:
        if not os.path.lexists(path):
            _make(path)
        fd = os.open(path, _READ)
        with os.fdopen(fd, "rb") as file:
            facts = os.fstat(fd)
            key = file.read(_BYTES + 1) if stat.S_ISREG(facts.st_mode) else b""
    except OSError as e:
        why = one_line(e.strerror or str(e))
        raise SystemFailureError(
            f"cannot read or make the key {quoted(str(path))}: {why}; check the folder"
        ) from e
    if len(key) != _BYTES or facts.st_uid != os.geteuid() or facts.st_mode & 0o077:
        raise SystemFailureError(f"the key {quoted(str(path))} is not private to this user: remove it")
    return key


def _make(path: Path) -> None:
    """Under its name at once whole, and never in place of one that another process made meanwhile."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with draft_in(path.parent, 0o600) as (draft, number):
        os.write(number, secrets.token_bytes(_BYTES))
        os.fsync(number)
        with contextlib.suppress(FileExistsError):
            os.link(draft, path)
