"""What of the processor decides how sums are rounded: two machines that agree on it give the same bytes."""

from __future__ import annotations

import contextlib
import ctypes
import platform
from pathlib import Path

_CORE_NAMES = ("scipy_openblas_get_corename64_", "scipy_openblas_get_corename", "openblas_get_corename")


def processor() -> dict[str, str]:
    """`machine`; `simd`, the widest instructions that NumPy chose; `blas`, the kernels that OpenBLAS chose ("" where
    another library is used, or none says)."""
    import numpy as np

    found = np.show_config(mode="dicts")
    simd = found.get("SIMD Extensions", {}) if isinstance(found, dict) else {}
    names = simd.get("found") or simd.get("baseline") or [""]
    return {"machine": platform.machine(), "simd": str(names[-1]), "blas": _blas_core()}


def _blas_core() -> str:
    """The core type of the OpenBLAS that is loaded."""
    with contextlib.suppress(OSError):
        maps = Path("/proc/self/maps").read_text(errors="surrogateescape")
        for path in sorted({line.split(maxsplit=5)[-1] for line in maps.splitlines() if "openblas" in line}):
            library = ctypes.CDLL(path)
            for name in _CORE_NAMES:
                if hasattr(library, name):
                    told = getattr(library, name)
                    told.restype = ctypes.c_char_p
                    return bytes(told()).decode("ascii", "replace")
    return ""
