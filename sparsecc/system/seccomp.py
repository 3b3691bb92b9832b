"""A filter of system calls: no sockets, and none of the calls that reach into other processes or the kernel.

Classic BPF over `struct seccomp_data`, as in https://docs.kernel.org/userspace-api/seccomp_filter.html; the numbers
are those of the kernel's syscall tables. A filter holds for the process, all it starts, and for good.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import sys

_PR_SET_SECCOMP = 22
_MODE_FILTER = 2
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_LOAD, _JUMP_IF_EQUAL, _JUMP_IF_AT_LEAST, _JUMP_IF_ANY, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER_AT, _ARCHITECTURE_AT, _FIRST_ARGUMENT_AT = 0, 4, 16
_X32 = 0x40000000

ARCHITECTURES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
"""Machine -> (AUDIT_ARCH of its calls, its column below)."""

REFUSED = {
    # name: (x86-64, AArch64)
    "socket": (41, 198),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "pidfd_getfd": (438, 438),
    "io_uring_setup": (425, 425),  # opens and connects without a call that a filter sees
    "memfd_create": (319, 279),  # a program in memory, which no rule about files holds back
    "memfd_secret": (447, 447),
    "execveat": (322, 281),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "move_mount": (429, 429),
    "open_tree": (428, 428),
    "fsopen": (430, 430),
    "open_by_handle_at": (304, 265),
    "setsid": (112, 157),  # who leaves the process group of the worker is not ended with it
    "setpgid": (109, 154),
}
"""Calls that fail with "operation not permitted". `socketpair`, which joins only the process with itself, may be."""
CLONE, CLONE3 = (56, 220), (435, 435)
NAMESPACES = 0x7E020000
"""Flags of `clone` that make namespaces: CLONE_NEW{NS,CGROUP,UTS,IPC,USER,PID,NET}. Those of `clone3` lie in
memory, which a filter cannot read: it fails as on a kernel without it, and C libraries take `clone`."""


class _Instruction(ctypes.Structure):
    _fields_ = (
        ("code", ctypes.c_uint16),
        ("yes", ctypes.c_uint8),
        ("no", ctypes.c_uint8),
        ("k", ctypes.c_uint32),
    )


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_uint16), ("filter", ctypes.POINTER(_Instruction)))


def is_available() -> bool:
    """Whether the kernel filters calls, and we know its numbers."""
    if sys.platform != "linux" or platform.machine() not in ARCHITECTURES:
        return False
    return os.path.exists("/proc/sys/kernel/seccomp/actions_avail")


def refuse_calls() -> None:
    """Refuse the calls of `REFUSED` from now on, and end a process that makes calls of another machine's numbers.

    Needs NO_NEW_PRIVS. OSError where the kernel refuses.
    """
    lines = _filter(platform.machine())
    program = _Program(len(lines), (_Instruction * len(lines))(*lines))
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_SECCOMP, _MODE_FILTER, ctypes.byref(program), 0, 0):
        code = ctypes.get_errno()
        raise OSError(code, f"seccomp: {os.strerror(code)}")


def _filter(machine: str) -> list[_Instruction]:
    """Jumps count from the next instruction; the last three allow, refuse, and know of no such call."""
    architecture, column = ARCHITECTURES[machine]
    numbers = [row[column] for row in REFUSED.values()]
    after = len(numbers)
    lines = [
        (_LOAD, 0, 0, _ARCHITECTURE_AT),
        (_JUMP_IF_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER_AT),
        (_JUMP_IF_AT_LEAST, after + 5, 0, _X32),
    ]
    lines += [(_JUMP_IF_EQUAL, after + 4 - i, 0, number) for i, number in enumerate(numbers)]
    lines += [
        (_JUMP_IF_EQUAL, 5, 0, CLONE3[column]),
        (_JUMP_IF_EQUAL, 0, 2, CLONE[column]),
        (_LOAD, 0, 0, _FIRST_ARGUMENT_AT),
        (_JUMP_IF_ANY, 1, 0, NAMESPACES),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _ERRNO | errno.EPERM),
        (_RETURN, 0, 0, _ERRNO | errno.ENOSYS),
    ]
    return [_Instruction(*line) for line in lines]
