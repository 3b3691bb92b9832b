"""Where a command writes what it makes of a model, when no place is named."""

from __future__ import annotations

import os
from pathlib import Path


def default_bundle(model: str | os.PathLike[str]) -> Path:
    """The bundle of a compile. Of a name at a hub (`hf:owner/name@revision`) the name counts."""
    scheme, colon, rest = os.fspath(model).partition("hf:")
    name = rest.partition("@")[0] if colon and not scheme else os.path.abspath(model)
    return Path(f"{Path(name).stem}.sparsecc")


def default_search(model: str | os.PathLike[str]) -> Path:
    """The folder of a search."""
    return Path(f"{Path(model).stem}.search")


def default_reduced(model: str | os.PathLike[str]) -> Path:
    """The model that a reduction is left with."""
    return Path(f"{Path(model).stem}.reduced.onnx")
