"""What works on this machine."""

from __future__ import annotations

import platform
from dataclasses import asdict
from typing import Any

from sparsecc.backends import backend_named
from sparsecc.backends.base import Availability
from sparsecc.errors import SparseccError
from sparsecc.system import sandbox
from sparsecc.system.runtime_packages import collision, remedy
from sparsecc.system.versions import versions
from sparsecc.targets import TARGETS, installed_runtimes


def examine() -> dict[str, Any]:
    """Every target with whether it works here, its version, and what a missing one needs."""
    return {
        "schema": "sparsecc.doctor/1",
        "python": platform.python_version(),
        "versions": versions(),
        "targets": [*(_target(name) for name in TARGETS), *_broken()],
        "devices": [{"name": "local", "ok": True, "version": platform.machine(), "reason": "", "remedy": ""}],
        "collisions": [{"told": told, "remedy": remedy()}] if (told := collision()) else [],
        "sandbox": asdict(sandbox.state()),
    }


def _target(name: str) -> dict[str, Any]:
    try:
        found = backend_named(TARGETS[name].backend).availability()
    except SparseccError as e:
        return _row(name, Availability(False, "", str(e), "pip install -U the package that offers it"))
    return _row(name, found)


def _broken() -> list[dict[str, Any]]:
    """Runtimes of installed packages that cannot even be asked for their targets."""
    _, reasons = installed_runtimes()
    remedy = "install the package that offers it anew"
    return [_row(name, Availability(False, "", reason, remedy)) for name, reason in reasons.items()]


def _row(name: str, found: Availability) -> dict[str, Any]:
    return {"name": name, **asdict(found)}
