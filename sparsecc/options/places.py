"""Where a command writes what it makes of a model, when no place is named."""

from __future__ import annotations

import os
from pathlib import Path


def default_bundle(model: str | os.PathLike[str]) -> Path:
    """The bundle of a compile."""
    return Path(f"{Path(model).stem}.sparsecc")


def default_search(model: str | os.PathLike[str]) -> Path:
    """The folder of a search."""
    return Path(f"{Path(model).stem}.search")


def default_reduced(model: str | os.PathLike[str]) -> Path:
    """The model that a reduction is left with."""
    return Path(f"{Path(model).stem}.reduced.onnx")
