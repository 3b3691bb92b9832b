"""How much memory a process may take, and how much of a model it therefore holds at a time."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir

HELD = 1 << 20
"""Tensors of more bytes stay in their file: they are read, cut and written one at a time."""

BESIDE = 1 << 30
"""Weights of more bytes go into a file beside the model; protobuf ends at twice that."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST_BLOCK = 32 << 20
"""The largest that glibc takes from its heap."""

_TIMES = 8
"""A whole compile holds several sessions, each with its weights packed or cast: about so many times their bytes."""


def default_limit() -> int:
    """Nine tenths of the machine's memory, or of the control group's when that is less; bytes."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for name in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):
            total = min(total, int(Path(name).read_text()))
    return total * 9 // 10


def held_by(pid: int) -> int:
    """Bytes that the process holds and that the kernel cannot take back: pages of mapped files do not count.
    0 where the system does not say."""
    held = 0
    with contextlib.suppress(OSError, ValueError), open(f"/proc/{pid}/status", "rb") as status:
        for line in status:
            if line.startswith((b"RssAnon:", b"RssShmem:")):
                held += int(line.split()[1]) << 10
    return held


def keep_freed() -> None:
    """Until `give_back`, freed blocks of up to 32 MiB are kept for later ones, whatever their sum.

    Who computes one large value after the other, and lets each go, else waits for the kernel to zero each page again.
    """
    _blocks_from(_LARGEST_BLOCK, 1 << 30)


def give_back() -> None:
    """Return what was freed to the system: the C library keeps freed blocks, which later ones often do not fit in."""
    _blocks_from(_LARGEST_BLOCK, 2 * _LARGEST_BLOCK)  # what it comes to by itself where large ones are freed
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _blocks_from(size: int, kept: int) -> None:
    """Larger blocks come from the kernel; up to `kept` freed bytes may lie at the end of the heap (mallopt(3))."""
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.mallopt(_M_MMAP_THRESHOLD, size)
        library.mallopt(_M_TRIM_THRESHOLD, kept)


def ceiling() -> int:
    """Bytes that this process may take: the limit it was started with, else that of the machine."""
    limit, _ = resource.getrlimit(resource.RLIMIT_DATA)
    return default_limit() if limit == resource.RLIM_INFINITY else limit


def weight_bytes(model: ir.Model) -> int:
    """Bytes of all constants of a model, its inner graphs' too."""
    return sum(
        tensor.nbytes
        for graph in model.graphs()
        for value in graph.initializers.values()
        if (tensor := value.const_value) is not None
    )


def fits(weights: int) -> bool:
    """Whether a model with so many bytes of weights can be run and optimized whole in this process."""
    return weights * _TIMES <= ceiling()


def part_bytes() -> int:
    """Bytes of weights, in single precision, that one part of a model has where it is run by parts."""
    return min(384 << 20, ceiling() // 16)


def gigabytes(number: int) -> str:
    """Bytes for people."""
    return f"{number / 1e9:.3g} GB"
