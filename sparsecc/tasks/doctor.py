"""What works on this machine."""

from __future__ import annotations

import platform
from typing import Any

from sparsecc.backends import backend_named
from sparsecc.errors import SparseccError
from sparsecc.system.versions import versions
from sparsecc.targets import TARGETS


def examine() -> dict[str, Any]:
    """Every target with whether it works here, its version, and what a missing one needs."""
    return {
        "schema": "sparsecc.doctor/1",
        "python": platform.python_version(),
        "versions": versions(),
        "targets": [_target(name) for name in TARGETS],
        "devices": [{"name": "local", "ok": True, "version": platform.machine(), "reason": "", "remedy": ""}],
    }


def _target(name: str) -> dict[str, Any]:
    try:
        found = backend_named(TARGETS[name].backend).availability()
    except SparseccError as e:
        return {
            "name": name,
            "ok": False,
            "version": "",
            "reason": str(e),
            "remedy": "pip install -U sparsecc",
        }
    return {
        "name": name,
        "ok": found.ok,
        "version": found.version,
        "reason": found.reason,
        "remedy": found.remedy,
    }
