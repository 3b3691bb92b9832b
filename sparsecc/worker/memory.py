"""How much memory there is, and how much a process holds of its own."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


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
