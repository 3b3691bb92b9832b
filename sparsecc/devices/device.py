"""What a device can do: take files into a private folder, run a list of arguments there, give files back."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from sparsecc.errors import InputError
from sparsecc.escaping import quoted

LARGEST_OUTPUT = 32 << 20
"""Bytes of stdout and of stderr kept from one command; a device that prints more is stopped."""

_SSH = re.compile(
    r"ssh://(?:([A-Za-z0-9._][A-Za-z0-9._-]*)@)?(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_][A-Za-z0-9._-]*)(?::(\d{1,5}))?/?"
)
_ADB = re.compile(r"adb(?::([A-Za-z0-9][A-Za-z0-9._:-]*))?")
_PYTHON = re.compile(r"/[A-Za-z0-9_./+-]+|[A-Za-z0-9_][A-Za-z0-9_.+-]*")
PYTHON = "python3"
"""The Python of a device that names none."""
_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class DeviceAddress:
    """A parsed device: `kind` is local, ssh or adb; `host` is the adb serial for adb (may be empty).

    Without a port, `~/.ssh/config` says which, or it is 22. `python` is the program that measures there.
    """

    kind: str
    host: str = ""
    user: str = ""
    port: int = 0
    python: str = PYTHON


@dataclass(frozen=True)
class Completed:
    """A command that ended: its exit status, what it printed, and its wall time in seconds."""

    status: int
    stdout: str
    stderr: str
    seconds: float


class Device(ABC):
    """One place to build and measure. `folder` is its private folder (0700), removed by `close`, and when we or the
    connection die; `python` is the program that runs our Python there.

    Files have plain names inside that folder; commands run in it. Every method raises UnavailableError when
    the connection is lost and SystemFailureError when the device's disk is full.
    """

    spec: str
    folder: str
    python: str

    @abstractmethod
    def put(self, local: Path, name: str) -> None:
        """Copy a file over and check its sha256 there."""

    @abstractmethod
    def get(self, name: str, local: Path, *, limit: int) -> None:
        """Copy a file back. InputError when it is missing or larger than `limit` bytes."""

    @abstractmethod
    def run(self, argv: Sequence[str], *, timeout: float) -> Completed:
        """Run a program with exactly these arguments, without a shell of ours in between.

        WorkerError when it takes more than `timeout` seconds; it is then stopped.
        """

    @abstractmethod
    def close(self) -> None:
        """Remove the private folder and hang up. Safe to call twice."""

    def __enter__(self) -> Device:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def parse_device(spec: str) -> DeviceAddress:
    """`local`, `ssh://user@host:port` or `adb:SERIAL`, the last two with `?python=PATH` where it is not python3.

    InputError on anything else.
    """
    if spec == "local":
        return DeviceAddress("local")
    address, asks, python = spec.partition("?python=")
    if asks and not _PYTHON.fullmatch(python):
        raise InputError(
            f"device {quoted(spec)}: {quoted(python)} is no program: write ?python=/PATH/TO/python3"
        )
    if found := _SSH.fullmatch(address):
        port = int(found[3] or 0)
        if found[3] is None or 0 < port < 65536:
            return DeviceAddress("ssh", found[2].strip("[]"), found[1] or "", port, python or PYTHON)
    if found := _ADB.fullmatch(address):
        return DeviceAddress("adb", found[1] or "", python=python or PYTHON)
    raise InputError(
        f"device {quoted(spec)} is not one: write local, ssh://user@host:port or adb:SERIAL (?python=PATH may follow)"
    )


def checked_name(name: str) -> str:
    """The name of a file in a device's folder. InputError when it could leave the folder or be an option."""
    if not _FILE.fullmatch(name):
        raise InputError(
            f"file name {quoted(name)} is not allowed on a device: use letters, digits, '.', '_', '-'"
        )
    return name


def checked_argv(argv: Sequence[str]) -> list[str]:
    """The arguments as they are. InputError when there are none, or one holds a NUL."""
    if not argv or not argv[0]:
        raise InputError("no program to run on the device: give its name first")
    if any("\0" in argument for argument in argv):
        raise InputError("an argument for the device holds a NUL character: take it out")
    return list(argv)
