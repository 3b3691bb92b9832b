"""Where a command writes what it makes of a model, when no place is named."""

from __future__ import annotations

import os
from pathlib import Path

ENDINGS = (".onnx", ".ort", ".pb", ".sparsecc")
"""What is cut off a name: the dots of `Qwen2.5-0.5B` are part of it."""


def default_bundle(model: str | os.PathLike[str]) -> Path:
    """The bundle of a compile."""
    return Path(f"{_name(model)}.sparsecc")


def default_search(model: str | os.PathLike[str]) -> Path:
    """The folder of a search."""
    return Path(f"{_name(model)}.search")


def default_reduced(model: str | os.PathLike[str]) -> Path:
    """The model that a reduction is left with."""
    return Path(f"{_name(model)}.reduced.onnx")


def _name(model: str | os.PathLike[str]) -> str:
    """The file's or folder's name without its ending; of a name at a hub (`hf:owner/name@revision`) the name."""
    scheme, colon, rest = os.fspath(model).partition("hf:")
    path = Path(rest.partition("@")[0] if colon and not scheme else os.path.abspath(model))
    return path.stem if path.suffix.lower() in ENDINGS else path.name
