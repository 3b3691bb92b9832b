"""Which tasks no sandbox can hold, and why: they reach a device, a driver of a GPU, or run code of the user's own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sparsecc.targets import TARGETS

_SAMPLES = {"calib": "--calib", "calib_general": "--calib-general", "labels": "--labels", "data": "--data"}


def beyond_sandbox(options: Mapping[str, Any]) -> str:
    """Why a task with these options runs outside of the sandbox; "" where it does not.

    `options` are those of `compile` or `profile`, given by the user. None that a file may set
    (`sparsecc/bundle/foreign.py`) leads out of the sandbox.
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
    if target is not None and target.talks_to_drivers:
        return f"target {target.name} talks to the drivers of a GPU"
    return ""


def _is_function(spec: Any) -> bool:
    file, colon, _ = str(spec or "").rpartition(":")
    return bool(colon) and file.endswith(".py") and not Path(str(spec)).exists()
