"""Which model it is: the hash of the file, and those of the files that hold its weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from sparsecc.loading.external import ExternalFiles
from sparsecc.loading.open_model import open_model
from sparsecc.loading.package import package_at
from sparsecc.system.files import file_sha256

_PIECE = 4 << 20
"""Bytes hashed at a time: over what mapped files keep."""


def identity_of(path: Path) -> dict[str, Any]:
    """{"sha256": of the file}, and where it has external data {"data": {location: sha256}}, in hex.

    Of the folder of a package of several files "data" has each file too, and "sha256" is that of their hashes.
    InputError for what the front door refuses. Bundles of version 0.1 have no "data".
    """
    if path.is_dir() and (package := package_at(path)) is not None:
        files = {file.name: identity_of(file) for file in package.models}
        data = {n: h for one in files.values() for n, h in one.get("data", {}).items()}
        data |= {name: one["sha256"] for name, one in files.items()}
        return {"sha256": hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest(), "data": data}
    return identity_with(path, open_model(path).files)


def identity_with(path: Path, files: ExternalFiles) -> dict[str, Any]:
    """`identity_of` where the model is open already."""
    data = {location: _digest(files.whole(location, _PIECE)) for location in files.names()}
    return {"sha256": file_sha256(path), **({"data": data} if data else {})}


def identify(request: dict[str, Any], emit: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """`identity_of` as a task of a worker: {"model": path} -> the hashes."""
    return identity_of(Path(request["model"]))


def is_same(recorded: dict[str, Any], found: dict[str, Any]) -> bool:
    """Whether a model is the one recorded; external data counts where it was recorded."""
    return recorded["sha256"] == found["sha256"] and recorded.get("data", found.get("data")) == found.get(
        "data"
    )


def digest_of(identity: dict[str, Any]) -> str:
    """One hash for the whole: that of the file where it has no external data."""
    if "data" not in identity:
        return str(identity["sha256"])
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def _digest(pieces: Iterable[np.ndarray]) -> str:
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece.tobytes())
    return digest.hexdigest()
