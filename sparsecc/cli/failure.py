"""From an exception to one line on stderr and an exit code."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable

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


def _crash_report(error: Exception) -> str:
    """Write the traceback to a private file; the words that tell the user where it lies."""
    from sparsecc.worker.crash import write_report

    versions = f"sparsecc {installed_version()}, Python {sys.version}"
    path = write_report({"versions": versions, "traceback": "".join(traceback.format_exception(error))})
    return f"with {path}" if path is not None else "with what --debug shows (no report could be written)"


def installed_version() -> str:
    """The version of the installed package, or `unknown`."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("sparsecc")
    except PackageNotFoundError:
        return "unknown"
