"""From an exception to one line on stderr and an exit code."""

from __future__ import annotations

import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path

import click

from sparsecc.errors import SparseccError

INTERRUPTED = 130
USAGE = 2
BUG = 70


def exit_code_of(command: Callable[[], object], *, debug: bool) -> int:
    """Call `command`; its integer result, or the exit code of what it raised, after saying so in one line."""
    try:
        result = command()
    except SparseccError as error:
        _explain(str(error), debug)
        return error.exit_code
    except click.UsageError as error:
        _explain(_usage_message(error), debug)
        return USAGE
    except click.ClickException as error:
        _explain(error.format_message(), debug)
        return USAGE
    except (KeyboardInterrupt, click.Abort):
        _say("interrupted; nothing was written")
        return INTERRUPTED
    except Exception as error:  # noqa: BLE001 - the last door: whatever else arrives here is our fault
        _explain(_bug_message(error), debug)
        return BUG
    return result if isinstance(result, int) else 0


def _usage_message(error: click.UsageError) -> str:
    path = error.ctx.command_path if error.ctx is not None else "sparsecc"
    return f"{error.format_message().rstrip('.')} (see '{path} --help')"


def _bug_message(error: Exception) -> str:
    kind = type(error).__name__
    return f"{kind}: {error}: a bug in sparsecc; please report it {_crash_report(error)}"


def _explain(message: str, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    _say(f"error: {message}")


def _say(message: str) -> None:
    from sparsecc.text import one_line

    click.echo(f"sparsecc: {one_line(message)}", err=True)


def crash_folder() -> Path:
    """Where crash reports go: private to the user."""
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(cache) / "sparsecc" / "crashes"


def _crash_report(error: Exception) -> str:
    """Write the traceback to a private file; the words that tell the user where it lies."""
    lines = [f"sparsecc {installed_version()}, Python {sys.version}\n", *traceback.format_exception(error)]
    try:
        folder = crash_folder()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle, path = tempfile.mkstemp(prefix="crash-", suffix=".txt", dir=folder)
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.writelines(lines)
    except OSError as problem:
        return f"with what --debug shows (no crash report: {problem.strerror})"
    return f"with {path}"


def installed_version() -> str:
    """The version of the installed package, or `unknown`."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("sparsecc")
    except PackageNotFoundError:
        return "unknown"
