"""From an exception to one line on stderr and an exit code."""

from __future__ import annotations

import errno
import sys
import traceback
from collections.abc import Callable

import click

from sparsecc.cli.run_log import Trail, traceback_here
from sparsecc.cli.streams import say, stdout_failure
from sparsecc.errors import SparseccError
from sparsecc.system.interrupts import Interrupted

INTERRUPTED = 130
ENVIRONMENT = 6
USAGE = 2
BUG = 70
ENVIRONMENTAL = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EBADF, errno.EPIPE),
    *(errno.ENOMEM, errno.EAGAIN, errno.EMFILE, errno.ENFILE),
}
"""What a system says that is full, read-only or out of memory, processes or files: no fault of ours."""
MOST = 600
"""Characters of a message: room for the names of all criteria."""


def exit_code_of(command: Callable[[], object], trail: Trail) -> int:
    """Call `command`; its integer result, or the exit code of what it raised, after saying so in one line."""
    try:
        result = command()
    except SparseccError as error:
        return _explain(str(error), error.exit_code, trail)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return USAGE
    except click.UsageError as error:
        return _explain(_usage_message(error), USAGE, trail)
    except click.ClickException as error:
        return _explain(error.format_message(), USAGE, trail)
    except Interrupted as signal:
        trail.say("warning", f"ended by {signal.name}; {trail.what_was_written()}", exit=signal.exit_code)
        return signal.exit_code
    except (KeyboardInterrupt, click.Abort):
        trail.say("warning", f"interrupted; {trail.what_was_written()}", exit=INTERRUPTED)
        return INTERRUPTED
    except MemoryError:
        return _explain("this process has too little memory: raise its limit (ulimit)", ENVIRONMENT, trail)
    except OSError as error:
        if error.errno not in ENVIRONMENTAL:
            return _explain(_bug_message(error), BUG, trail)
        if error.errno in (errno.EBADF, errno.ENOSPC, errno.EIO, errno.EPIPE) and error.filename is None:
            return _explain(str(stdout_failure(error)), ENVIRONMENT, trail)
        return _explain(f"the system refuses: {error}; mend it and run again", ENVIRONMENT, trail)
    except Exception as error:  # noqa: BLE001 - the last door: what does not come from the user's code is our fault
        if (theirs := _theirs(error)) is not None:
            return _explain(str(theirs), theirs.exit_code, trail)
        return _explain(_bug_message(error), BUG, trail)
    return result if isinstance(result, int) else 0


def _theirs(error: Exception) -> SparseccError | None:
    from sparsecc.system.user_code import error_of

    return error_of(error)


def _usage_message(error: click.UsageError) -> str:
    path = error.ctx.command_path if error.ctx is not None else "sparsecc"
    return f"{error.format_message().rstrip('.')} (see '{path} --help')"


def _bug_message(error: Exception) -> str:
    kind = type(error).__name__
    return f"{kind}: {error}: a bug in sparsecc; please report it {_crash_report(error)}"


def _explain(message: str, code: int, trail: Trail) -> int:
    from sparsecc.escaping import one_line

    if trail.keeps_debug and not trail.speaks_json:
        say(traceback_here())
    written = [path for path in trail.written() if path not in message]
    message += f"; {', '.join(written)} was already written" if written else ""
    trail.say("error", one_line(message, MOST), exit=code)
    folder = trail.write_debug() if trail.keeps_debug else None
    if folder is not None:
        trail.say(
            "info", f"kept {folder}: command, options, versions, log and traceback, nothing of the model"
        )
    return code


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
