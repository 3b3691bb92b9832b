"""Samples and functions that the user names: whether they are there, before anything is opened."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sparsecc.errors import InputError
from sparsecc.options.table import NO_SAMPLES, SCORES, SELF, SYNTHETIC
from sparsecc.system.user_code import file_and_function

MEMORY = "memory:"
"""What begins a value that stands for data or a function of the parent's."""
_SAMPLES = {"calib": "--calib", "calib_general": "--calib-general", "labels": "--labels"}


def require_named(options: Mapping[str, Any]) -> None:
    """InputError where an option of `compile` names samples, labels or a function that are not there."""
    for name, flag in _SAMPLES.items():
        spec = str(options.get(name) or NO_SAMPLES)
        if spec not in (SYNTHETIC, SELF, NO_SAMPLES) and not spec.startswith(MEMORY):
            require_samples(spec, f"{flag} {spec}")
    spec = str(options.get("evaluate") or MEMORY)
    if spec.lower() in SCORES or spec.startswith(MEMORY):
        return
    if ":" not in spec and not Path(spec).exists():
        raise InputError(
            f"--evaluate {spec} is no metric and no file: write FILE.py:FUNCTION, or with --labels one of "
            f"{', '.join(SCORES)}"
        )
    file_and_function(spec, "--evaluate")


def require_samples(spec: str, flag: str) -> None:
    """InputError where `spec` is no file, folder or function; `flag` says where it was named."""
    path = Path(spec)
    if path.exists() and path.suffix != ".py":
        return
    if spec.rpartition(":")[0].endswith(".py") or path.suffix == ".py":
        file_and_function(spec, flag.partition(" ")[0])
        return
    raise InputError(f"{flag}: no such file or folder: give .npz, .npy, a folder, or file.py:function")
