"""The errors a user can meet: each names what, where, and what to do next, and carries its exit code."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from sparsecc.escaping import quoted

EXIT_CODES = {
    0: "done",
    1: "goal not met, or not measured",
    2: "usage or bad input",
    3: "target or device not available here",
    4: "inconclusive",
    5: "a worker ran out of time or memory, or was killed",
    6: "the environment failed (disk, memory, permission, stdout)",
    70: "a bug in sparsecc",
    129: "ended by SIGHUP",
    130: "ended by SIGINT (Ctrl-C)",
    143: "ended by SIGTERM",
}
"""What every command's exit code means; there are no others."""


class SparseccError(Exception):
    """Base of every error meant for the user; printed as one line, never as a traceback."""

    exit_code = 70
    in_worker = ""
    """The traceback of the worker that the error comes from, for `--debug` and crash reports; "" without one."""


class GoalError(SparseccError):
    """The compile or check ran, but what was asked (ratio, latency, accuracy) was not met."""

    exit_code = 1


class InputError(SparseccError):
    """The command line or an input file is wrong."""

    exit_code = 2


class RuntimeRefusalError(InputError):
    """The runtime refused a model, or inputs of it: the user's, unless it was made by us."""


class UnavailableError(SparseccError):
    """A target or device is not available here; the message says what it needs."""

    exit_code = 3


class MissingPackageError(UnavailableError, ImportError):
    """A package that is no requirement of ours is not installed; the message says which extra brings it."""


class InconclusiveError(SparseccError):
    """A measurement could not tell."""

    exit_code = 4


class WorkerError(SparseccError):
    """A worker process was killed, or ran out of time or memory."""

    exit_code = 5


class SystemFailureError(SparseccError):
    """The environment failed us: disk full, permission lost."""

    exit_code = 6


class InternalError(SparseccError):
    """A fault of sparsecc itself: a check that must hold did not."""

    exit_code = 70


def unknown(kind: str, plural: str, name: str, known: Iterable[str]) -> InputError:
    """The error for a name that is none of `known`: it names the closest one, and all."""
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    hint = f"did you mean '{close[0]}'? " if close else ""
    return InputError(f"unknown {kind} {quoted(name)}: {hint}{plural} are {', '.join(names)}")
