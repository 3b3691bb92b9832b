"""Which engines may be loaded. Deserializing one runs native code, and a stripped one takes weights from beside it.

A manifest beside an engine is written by whoever wrote the engine, so it vouches for nothing: this user's own key
does (`sparsecc/system/user_key.py`), for what was built by a process of this user, or a signature by a key that the
user names. What a board built is only loaded there.
"""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path

from sparsecc.errors import InputError
from sparsecc.escaping import quoted
from sparsecc.system.files import file_sha256
from sparsecc.system.user_key import code_of, is_code

CODE = ".mac"
"""What stands behind an engine's name in that of the file with its code."""

_WEIGHTS = ("model.onnx", "model.onnx.data")
"""What a stripped engine is refitted from."""

_signed: set[bytes] = set()
"""Hashes of the engines that a signature vouches for, as this process has checked."""


def vouch(path: Path, place: str = "local") -> str:
    """Say that a process of this user had the engine built at `place`; returns the name of the file that says so."""
    beside = path.with_name(path.name + CODE)
    beside.write_text(code_of(f"engine at {place}", *_digests(path, path.read_bytes())), encoding="ascii")
    return beside.name


def accept_signed(path: Path) -> None:
    """Take an engine for good whose bundle's signature the caller has just checked."""
    _signed.add(hashlib.sha256(path.read_bytes()).digest())


def is_vouched(path: Path) -> bool:
    """Whether the engine may be loaded here."""
    with contextlib.suppress(InputError):
        return bool(read_vouched(path))
    return False


def read_vouched(path: Path, place: str = "local") -> bytes:
    """The bytes of an engine that may be loaded at `place`: built there or here for this user, or signed.

    The bytes returned are those that were hashed. InputError for any other: it never reaches a runtime.
    """
    try:
        data = path.read_bytes()
    except OSError as e:
        raise InputError(f"{quoted(str(path))} cannot be read ({e.strerror}): check the path") from e
    if hashlib.sha256(data).digest() in _signed:
        return data
    said, digests = _said(path), _digests(path, data)
    if not any(is_code(said, f"engine at {one}", *digests) for one in ("local", place)):
        raise InputError(
            f"{quoted(str(path))} was not built for this user at {quoted(place)}, and an engine runs code when it is "
            "loaded: build it again with sparsecc build, or name its maker's public key with --key"
        )
    return data


def _digests(path: Path, data: bytes) -> list[bytes]:
    """Hashes of the engine and of the weights beside it."""
    digests = [hashlib.sha256(data).digest()]
    for weights in map(path.with_name, _WEIGHTS):
        if weights.is_file():
            digests.append(f"{weights.name} {file_sha256(weights)}".encode())
    return digests


def _said(path: Path) -> str:
    try:
        return path.with_name(path.name + CODE).read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError):
        return ""
