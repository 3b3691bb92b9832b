"""sparsecc: a deployment compiler for sparse models."""

import os
import sys


def _leave_working_folder() -> None:
    """Take off the import path what Python puts first there for `python -m sparsecc`: the working folder, unless
    sparsecc itself lies there. It stands before every other import, for any could lie there, too."""
    try:
        here = os.getcwd()
    except OSError:  # it is gone, and not on the path
        return
    home = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    if sys.path and sys.path[0] == here != home:
        del sys.path[0]


if sys.argv[:1] == ["-m"] and sys.orig_argv[-len(sys.argv)] in (
    "sparsecc",
    "-msparsecc",
    f"{__name__}.__main__",
):
    _leave_working_folder()

from types import ModuleType  # noqa: E402
from typing import TYPE_CHECKING, Any  # noqa: E402

if TYPE_CHECKING:
    from sparsecc.api import build, compare, compile, doctor, gate, inspect, profile, reduce, sign, verify
    from sparsecc.fleet import profile_fleet
    from sparsecc.report.result import CompileResult
    from sparsecc.search.api import search

if sys.platform == "win32":
    raise ImportError("sparsecc runs on Linux and macOS: on Windows, use it in WSL")

# ONNX Runtime's wheels report their use over the network unless told otherwise before they are loaded.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__version__ = "0.2.0"
__all__ = [
    "CompileResult",
    "__version__",
    "build",
    "compare",
    "compile",
    "doctor",
    "gate",
    "inspect",
    "profile",
    "profile_fleet",
    "reduce",
    "search",
    "sign",
    "verify",
]

_HOMES = {
    "CompileResult": "sparsecc.report.result",
    "profile_fleet": "sparsecc.fleet",
    "search": "sparsecc.search.api",
}
"""Names that stand elsewhere than in `sparsecc.api`."""


def __getattr__(name: str) -> Any:
    """The verbs of `sparsecc.api`, imported when first used so that `sparsecc --help` stays quick."""
    if name in __all__:
        from importlib import import_module

        return getattr(import_module(_HOMES.get(name, "sparsecc.api")), name)
    raise AttributeError(f"module 'sparsecc' has no attribute '{name}'")


def __dir__() -> list[str]:
    """What completion shows: the public names, whether they were used already or not."""
    return sorted(__all__)


class _Package(ModuleType):
    """`verify` and `doctor` are rooms as well as verbs: importing a room must not hide the verb."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in __all__ and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
