"""The versions of what shapes a result."""

from __future__ import annotations

import contextlib
import platform
from importlib import metadata

from sparsecc.system.runtime_packages import installed

PACKAGES = ("sparsecc", "numpy", "onnx", "onnx-ir", "onnxruntime")
"""Packages whose versions every manifest records."""


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that shape the result."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return {**found, **installed()}
