"""The `sparsecc` command, and `python -m sparsecc`."""

from __future__ import annotations

import signal
import sys


def main() -> int:
    """Run the command line and return its exit code.

    While it is imported and once it has ended, when nothing is begun or all is done, Ctrl-C ends the process quietly.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from sparsecc.cli import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
