"""The three streams of a command, whatever they are: closed, full, or read by nobody.

A result that cannot be written is a failure of the environment (exit code 6). A message that cannot is dropped: the
exit code says the same.
"""

from __future__ import annotations

import io
import os
import sys
from typing import TextIO

from sparsecc.errors import SystemFailureError


class Closed(io.TextIOBase):
    """Stands in for a stdout that the caller closed: whatever is written to it fails as it would there."""

    encoding = "utf-8"

    def write(self, text: str) -> int:
        raise OSError(9, "it is closed")


def open_closed_streams() -> None:
    """Descriptors 0 to 2 that the caller closed lead nowhere; else our first files would take their numbers."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
            os.set_inheritable(number, True)
    if sys.stdout is None:
        sys.stdout = Closed()
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - for as long as the process lives


def say(line: str) -> None:
    """One line on stderr, where it can be written."""
    try:
        sys.stderr.write(line.encode(sys.stderr.encoding or "utf-8", "backslashreplace").decode() + "\n")
        sys.stderr.flush()
    except OSError:
        discard(sys.stderr)


def stdout_failure(error: OSError) -> SystemFailureError:
    """The error for a result that stdout did not take; what Python still holds of it is let go."""
    discard(sys.stdout)
    return SystemFailureError(f"cannot write the result to stdout: {error.strerror}; give it a place to go")


def discard(stream: TextIO) -> None:
    """Lead a stream nowhere, so that what it still holds does no harm when the process ends."""
    if not isinstance(stream, Closed):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
