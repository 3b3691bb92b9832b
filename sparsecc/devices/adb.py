"""A phone or board over adb, whose `shell` hands one string to a shell there: arguments are quoted for it."""

from __future__ import annotations

import contextlib
import hashlib
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from sparsecc.devices.device import (
    LARGEST_OUTPUT,
    Completed,
    Device,
    DeviceAddress,
    checked_argv,
    checked_name,
)
from sparsecc.devices.keeper import folder_in, keeper_command, stop_command
from sparsecc.errors import InputError, SystemFailureError, UnavailableError, WorkerError
from sparsecc.escaping import one_line, quoted
from sparsecc.system.process import start_program

_QUICK_SECONDS = 60.0
_COPY_SECONDS = 3600.0
_BASE = "/data/local/tmp"
_LOST = re.compile(r"(error|adb): .*(device '.*' not found|device offline|no devices|unauthorized|closed)")
"""How adb itself says that it does not reach the device."""


class AdbDevice(Device):
    """One device of `adb devices`, with a private folder under /data/local/tmp that a keeper there owns
    (`devices/keeper.py`)."""

    def __init__(self, address: DeviceAddress) -> None:
        program = shutil.which("adb")
        if program is None:
            raise UnavailableError("adb is not installed: install Android's platform tools, or use ssh://")
        self.spec = f"adb:{address.host}" if address.host else "adb"
        self.folder, self.python = "", address.python
        self._adb = [program, "-s", address.host] if address.host else [program]
        self.run(["true"], timeout=_QUICK_SECONDS)  # whether it answers at all, in adb's own words
        self._keeper = start_program(
            [*self._adb, "shell", "-T", keeper_command(_BASE)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        try:
            self.folder = self._folder_made()
        except BaseException:
            self.close()
            raise

    def put(self, local: Path, name: str) -> None:
        target = f"{self.folder}/{checked_name(name)}"
        self._copy(["push", str(local.resolve()), target], name)
        done = self.run(["sha256sum", name], timeout=_COPY_SECONDS)
        if done.stdout.split()[:1] != [hashlib.sha256(local.read_bytes()).hexdigest()]:
            raise SystemFailureError(f"{quoted(name)} arrived damaged on {self.spec}: check its storage")

    def get(self, name: str, local: Path, *, limit: int) -> None:
        size = self.run(["stat", "-c", "%s", checked_name(name)], timeout=_QUICK_SECONDS)
        if size.status != 0 or not size.stdout.strip().isdigit():
            raise InputError(f"{quoted(name)} was not written on {self.spec}: see the command's output")
        if int(size.stdout) > limit:
            raise InputError(f"{quoted(name)} is larger than {limit} bytes: not taken")
        self._copy(["pull", f"{self.folder}/{name}", str(local.resolve())], name)
        if local.stat().st_size > limit:
            local.unlink()
            raise InputError(f"{quoted(name)} is larger than {limit} bytes: not taken")

    def run(self, argv: Sequence[str], *, timeout: float) -> Completed:
        command = shlex.join(checked_argv(argv))
        if self.folder:
            command = f"cd {shlex.quote(self.folder)} && exec {command}"
        return self._call(["shell", "-T", command], timeout)

    def close(self) -> None:
        keeper, self.folder = self._keeper, ""
        for pipe in (keeper.stdin, keeper.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):
                pipe.close()
        try:
            keeper.wait(_QUICK_SECONDS)
        except subprocess.TimeoutExpired:
            keeper.kill()
            keeper.wait()

    def _folder_made(self) -> str:
        assert self._keeper.stdout is not None
        line = self._keeper.stdout.readline().decode("utf-8", "replace")
        folder = folder_in(line.strip())
        if folder is None:
            raise UnavailableError(f"{self.spec} makes no folder in {_BASE}: see 'adb devices'")
        return folder

    def _copy(self, arguments: list[str], name: str) -> None:
        done = self._call(arguments, _COPY_SECONDS)
        if done.status == 0:
            return
        said = done.stdout + done.stderr
        if "No space left" in said:
            raise SystemFailureError(
                f"the storage of {self.spec} is full while copying {quoted(name)}: free some"
            )
        raise SystemFailureError(
            f"{self.spec} does not copy {quoted(name)} ({one_line(said, 100)}): try again"
        )

    def _call(self, arguments: list[str], timeout: float) -> Completed:
        began = time.monotonic()
        pipe = subprocess.PIPE
        with start_program([*self._adb, *arguments], stdout=pipe, stderr=pipe) as adb:
            try:
                said = adb.communicate(timeout=timeout)
            except subprocess.TimeoutExpired as e:
                adb.kill()
                if self.folder:
                    self._call(["shell", "-T", stop_command(self.folder)], _QUICK_SECONDS)
                raise WorkerError(
                    f"a command on {self.spec} took more than {timeout:g} s: allow it more time"
                ) from e
            except BaseException:
                adb.kill()
                raise
        stdout, stderr = (text[:LARGEST_OUTPUT].decode("utf-8", "replace") for text in said)
        if adb.returncode != 0 and _LOST.match(stderr):
            raise UnavailableError(
                f"{self.spec} does not answer ({one_line(stderr, 100)}): see 'adb devices'"
            )
        return Completed(adb.returncode, stdout, stderr, time.monotonic() - began)
