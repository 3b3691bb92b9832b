"""Which tasks no sandbox can hold, and why: they reach a device, a driver of a GPU, or run code of the user's own."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sparsecc.errors import SparseccError
from sparsecc.targets import TARGETS

_SAMPLES = {"calib": "--calib", "calib_general": "--calib-general", "data": "--data"}


def beyond_sandbox(options: Mapping[str, Any]) -> str:
    """Why a task with these options runs outside of the sandbox; "" where it does not.

    `options` are those of `compile` or `profile`, given by the user: those of a file are in
    `sparsecc/bundle/foreign.py`, and none of them leads out of the sandbox but a target.
    """
    build = options.get("build") or {}
    device = str(options.get("device") or build.get("device") or "local")
    target = TARGETS.get(str(options.get("target")))
    if _is_function(options.get("evaluate")):
        return "--evaluate is a function of your own"
    for name, option in _SAMPLES.items():
        if _is_function(options.get(name)):
            return f"{option} is a function of your own"
    if build.get("plugins"):
        return "plug-ins are programs of your own"
    if device != "local":
        return f"{device} is reached over a connection"
    if target is not None and target.device == "gpu":
        return f"target {target.name} talks to the drivers of a GPU"
    return ""


def target_of(bundle: Path) -> str | None:
    """The target that the report of a bundle names; None where it names none of ours."""
    from sparsecc.bundle.folder import Bundle

    with contextlib.suppress(SparseccError):
        told = Bundle(bundle).report.get("target")
        name = told.get("name") if isinstance(told, dict) else None
        return name if isinstance(name, str) and name in TARGETS else None
    return None


def _is_function(spec: Any) -> bool:
    file, colon, _ = str(spec or "").rpartition(":")
    return bool(colon) and file.endswith(".py") and not Path(str(spec)).exists()
