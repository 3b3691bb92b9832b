"""The command line. Importing it, and answering `--help`, loads click and nothing heavier."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from sparsecc.cli.failure import exit_code_of
from sparsecc.cli.root import root
from sparsecc.cli.run_log import Trail
from sparsecc.cli.streams import open_closed_streams
from sparsecc.system.interrupts import interrupts

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code. `arguments` defaults to those of the process."""
    open_closed_streams()
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    trail = Trail(arguments)

    def command() -> object:
        with interrupts():
            return root.main(args=arguments, prog_name="sparsecc", standalone_mode=False, obj=trail)

    return exit_code_of(command, trail)
