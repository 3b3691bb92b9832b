"""The command line. Importing it, and answering `--help`, loads click and nothing heavier."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from sparsecc.cli.failure import exit_code_of
from sparsecc.cli.root import root
from sparsecc.cli.run_log import Trail

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code. `arguments` defaults to those of the process."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    trail = Trail(arguments)
    return exit_code_of(
        lambda: root.main(args=arguments, prog_name="sparsecc", standalone_mode=False, obj=trail), trail
    )
