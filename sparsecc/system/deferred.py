"""Modules of libraries that load at their first use, in processes of ours alone.

onnx_ir imports sympy (0.3 s of processor time) for arithmetic on symbolic dimensions, which nothing here does.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import LazyLoader
from types import ModuleType

DEFERRED = frozenset({"sympy", "onnx_ir._symbolic_shapes"})


class _Finder(MetaPathFinder):
    """Finds the modules of `DEFERRED` where any import does, and hands them out unloaded."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The specification of a module that loads when it is first asked for an attribute; None for all others."""
        spec = PathFinder.find_spec(name, path, target) if name in DEFERRED else None
        if spec is not None and spec.loader is not None:
            spec.loader = LazyLoader(spec.loader)
        return spec


def defer() -> None:
    """From now on, in this process."""
    sys.meta_path.insert(0, _Finder())
