"""Which plans may be loaded. Deserializing one runs native code, so a manifest must vouch for it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from sparsecc.errors import InputError
from sparsecc.escaping import quoted

MANIFEST = "manifest.json"

_built_here: set[str] = set()
"""Hashes of the plans that this process built: a compile runs its plan before the manifest is written."""


def vouch_for(digest: str) -> None:
    """Remember the sha256 of a plan that this very process has just built."""
    _built_here.add(digest)


def is_built_here(path: Path) -> bool:
    """Whether this very process built that plan, by its bytes."""
    return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() in _built_here


def read_vouched(path: Path) -> bytes:
    """The bytes of a plan that this process built, or whose sha256 stands in the manifest beside it.

    The bytes returned are those that were hashed. InputError when there is no manifest, it does not name the
    file, or the hash differs: the plan is then never handed to TensorRT.
    """
    try:
        data = path.read_bytes()
    except OSError as e:
        raise InputError(f"{quoted(str(path))} cannot be read ({e.strerror}): check the path") from e
    digest = hashlib.sha256(data).hexdigest()
    if digest not in _built_here and digest != _expected_hash(path):
        raise InputError(
            f"{quoted(str(path))} is not the file that {MANIFEST} vouches for: compile again, never load it"
        )
    return data


def _expected_hash(path: Path) -> str:
    manifest = path.parent / MANIFEST
    try:
        data = json.loads(manifest.read_text(encoding="utf-8"))
    except OSError as e:
        raise InputError(
            f"{quoted(str(path))} has no {MANIFEST} beside it: only plans in a bundle of sparsecc are loaded"
        ) from e
    except ValueError as e:
        raise InputError(f"{quoted(str(manifest))} is damaged: compile again") from e
    files = data.get("files") if isinstance(data, Mapping) else None
    entry = files.get(path.name) if isinstance(files, Mapping) else None
    digest = entry.get("sha256") if isinstance(entry, Mapping) else entry
    if not isinstance(digest, str):
        raise InputError(f"{quoted(str(manifest))} does not name {quoted(path.name)}: compile again")
    return digest.lower()
