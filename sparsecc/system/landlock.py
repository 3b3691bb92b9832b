"""Landlock: what a process may write and start, by file, without any right of the system's administrator.

The kernel's documentation is https://docs.kernel.org/userspace-api/landlock.html; the numbers are those of
include/uapi/linux/landlock.h. A rule holds for the process, all it starts, and for good.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterable
from pathlib import Path

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION = 1
_PATH_BENEATH = 1

_EXECUTE, _WRITE_FILE = 1 << 0, 1 << 1
_REMOVE_DIR, _REMOVE_FILE = 1 << 4, 1 << 5
_MAKE_CHAR, _MAKE_DIR, _MAKE_REG, _MAKE_SOCK = 1 << 6, 1 << 7, 1 << 8, 1 << 9
_MAKE_FIFO, _MAKE_BLOCK, _MAKE_SYM = 1 << 10, 1 << 11, 1 << 12
_REFER, _TRUNCATE = 1 << 13, 1 << 14

_SINCE_FIRST = (
    _EXECUTE | _WRITE_FILE | _REMOVE_DIR | _REMOVE_FILE | _MAKE_CHAR | _MAKE_DIR | _MAKE_REG | _MAKE_SOCK
    | _MAKE_FIFO | _MAKE_BLOCK | _MAKE_SYM
)  # fmt: skip
_OWN = (
    _WRITE_FILE | _REMOVE_DIR | _REMOVE_FILE | _MAKE_DIR | _MAKE_REG | _MAKE_FIFO | _MAKE_SYM | _REFER
    | _TRUNCATE
)  # fmt: skip
"""Everything in a folder of ours but devices and sockets."""
_TCP = 0b11
_ABSTRACT_SOCKETS_AND_SIGNALS = 0b11


class _Ruleset(ctypes.Structure):
    _fields_ = (("fs", ctypes.c_uint64), ("net", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32))


def version() -> int:
    """The version of Landlock that the kernel offers; 0 where it has none."""
    if sys.platform != "linux":
        return 0
    found = int(_libc().syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(_VERSION)))
    return max(0, found)


def restrict(*, write: Iterable[Path], start: Iterable[Path]) -> None:
    """From now on write only below the folders `write` and to /dev/null, and start only the programs `start`.

    TCP, signals to others and abstract sockets end too, where the kernel's version knows them. OSError where the
    kernel refuses. Holds for the calling thread and what it starts: call it while there is no other.
    """
    since = version()
    handled = _SINCE_FIRST | (_REFER if since >= 2 else 0) | (_TRUNCATE if since >= 3 else 0)
    rules = _Ruleset(handled, _TCP if since >= 4 else 0, _ABSTRACT_SOCKETS_AND_SIGNALS if since >= 6 else 0)
    size = 24 if since >= 6 else 16 if since >= 4 else 8
    ruleset = _called(_CREATE_RULESET, ctypes.byref(rules), ctypes.c_size_t(size), ctypes.c_uint32(0))
    try:
        for path in write:
            _allow(ruleset, path, _OWN & handled)
        for path in start:
            _allow(ruleset, path, _EXECUTE)
        _allow(ruleset, Path(os.devnull), _WRITE_FILE)
        _called(_RESTRICT_SELF, ctypes.c_int(ruleset), ctypes.c_uint32(0))
    finally:
        os.close(ruleset)


def _allow(ruleset: int, path: Path, rights: int) -> None:
    parent = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        rule = _PathBeneath(rights, parent)
        _called(_ADD_RULE, ctypes.c_int(ruleset), _PATH_BENEATH, ctypes.byref(rule), ctypes.c_uint32(0))
    finally:
        os.close(parent)


def _called(number: int, *arguments: object) -> int:
    found = int(_libc().syscall(number, *arguments))
    if found < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"Landlock: {os.strerror(code)}")
    return found


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
