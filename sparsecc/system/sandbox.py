"""The sandbox of the worker: no network, no program but our own interpreter, no writing outside folders of ours.

Landlock bounds files and programs, seccomp the system calls; each holds where the kernel has it, and `state` says
what does. What a sandbox would stop (a device, a driver of a GPU, functions of the user's own) runs outside: whoever
starts a worker says why. `SPARSECC_SANDBOX=off`, or `--no-sandbox`, turns it off.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from sparsecc.errors import InputError, WorkerError
from sparsecc.escaping import quoted
from sparsecc.system import landlock, seccomp
from sparsecc.system.cache import cache_folder

SWITCH = "SPARSECC_SANDBOX"
_NEWEST_THAT_MATTERS = 6


@dataclass(frozen=True)
class State:
    """What the sandbox does here: `holds` when it stops anything, `told` in words, `remedy` where it is not whole."""

    holds: bool
    told: str
    remedy: str = ""


def is_wanted(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether the switch is on. InputError for a value that it cannot have."""
    value = environment.get(SWITCH) or "on"
    if value not in ("on", "off"):
        raise InputError(f"{SWITCH} is {quoted(value)}: set it to on or off")
    return value == "on"


def state() -> State:
    """What a worker would be kept from on this machine."""
    if not is_wanted():
        return State(False, "turned off", f"unset {SWITCH}")
    if sys.platform != "linux":
        return State(False, f"none: it is made of what Linux offers, and this is {platform.system()}")
    files, calls = landlock.version(), seccomp.is_available()
    parts = ([f"files and programs (Landlock {files})"] if files else []) + (
        ["network and system calls (seccomp)"] if calls else []
    )
    whole = files >= _NEWEST_THAT_MATTERS and calls
    remedy = (
        ""
        if whole
        else "Linux 6.12 or newer, with CONFIG_SECURITY_LANDLOCK and CONFIG_SECCOMP_FILTER, has all"
    )
    return State(bool(parts), " and ".join(parts) or "the kernel has neither Landlock nor seccomp", remedy)


def enter(write: Iterable[Path]) -> None:
    """Keep this process, and all it starts, from whatever the kernel lets us: for good.

    Written may be below the folders `write` and our cache. WorkerError where other threads run already: those would
    stay outside. OSError where the kernel offers a part and then refuses it.
    """
    if sys.platform != "linux":
        return
    if (threads := len(os.listdir("/proc/self/task"))) > 1:
        raise WorkerError(
            f"the worker has {threads} threads before its sandbox stands, which it would not hold: "
            "find what starts one when Python starts, or use --no-sandbox"
        )
    if landlock.version():
        landlock.restrict(write=[*write, *_cache()], start=_interpreter())
    if seccomp.is_available():
        seccomp.refuse_calls()


def _cache() -> list[Path]:
    """The user's cache; nothing where there can be none, which is said when it is used."""
    try:
        cache_folder().mkdir(parents=True, exist_ok=True, mode=0o700)
    except (OSError, RuntimeError):
        return []
    return [cache_folder()]


def _interpreter() -> list[Path]:
    """Our Python, and the loader that the kernel starts it with."""
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as maps:
        mapped = {line.split(maxsplit=5)[-1].rstrip("\n") for line in maps}
    loaders = [Path(p) for p in sorted(mapped) if Path(p).name.startswith(("ld-linux", "ld-musl"))]
    return [Path(sys.executable), *loaders]
