"""This machine as a device."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from sparsecc.devices.device import LARGEST_OUTPUT, Completed, Device, checked_argv, checked_name
from sparsecc.errors import InputError, SystemFailureError, WorkerError
from sparsecc.escaping import one_line, quoted
from sparsecc.system.process import start_program
from sparsecc.system.temp_folders import locked_temporary


class LocalDevice(Device):
    """A private temporary folder of this machine."""

    def __init__(self) -> None:
        self.spec, self.python = "local", sys.executable
        self._lock: int | None
        folder, self._lock = locked_temporary("device")
        self.folder = str(folder)

    def put(self, local: Path, name: str) -> None:
        try:
            shutil.copyfile(local, Path(self.folder) / checked_name(name))
        except OSError as e:
            raise _copy_failed(local, e) from e

    def get(self, name: str, local: Path, *, limit: int) -> None:
        source = Path(self.folder) / checked_name(name)
        if not source.is_file() or source.is_symlink():
            raise InputError(f"{quoted(name)} was not written by the command: see its output")
        if source.stat().st_size > limit:
            raise InputError(f"{quoted(name)} is larger than {limit} bytes: not taken")
        try:
            shutil.copyfile(source, local)
        except OSError as e:
            raise _copy_failed(source, e) from e

    def run(self, argv: Sequence[str], *, timeout: float) -> Completed:
        arguments = checked_argv(argv)
        began = time.monotonic()
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            child = start_program(arguments, folder=self.folder, stdout=out, stderr=err, own_session=True)
            try:
                status = child.wait(timeout)
            except subprocess.TimeoutExpired as e:
                name = one_line(arguments[0], 80)
                raise WorkerError(
                    f"{name} took more than {timeout:g} s and was stopped: allow it more time"
                ) from e
            finally:
                _stop(child)
            texts = [_text_of(stream) for stream in (out, err)]
        return Completed(status, texts[0], texts[1], time.monotonic() - began)

    def close(self) -> None:
        if self._lock is None:
            return
        shutil.rmtree(self.folder, ignore_errors=True)
        os.close(self._lock)
        self._lock = None


def _stop(child: subprocess.Popen[bytes]) -> None:
    """End a command that has not ended, and whatever it left in its session."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _text_of(stream: IO[bytes]) -> str:
    stream.seek(0)
    return stream.read(LARGEST_OUTPUT).decode("utf-8", "replace")


def _copy_failed(path: Path, error: OSError) -> Exception:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return SystemFailureError(f"the disk is full while copying {quoted(path.name)}: free some space")
    return InputError(f"{quoted(str(path))} cannot be copied ({error.strerror}): check the path")
