"""The `sparsecc` command, and `python -m sparsecc`.

For `-m` Python puts the working folder first on its import path; `sparsecc/__init__.py` takes it off again. What
Python has imported by then, the package `sparsecc` first of all, it may have found in that folder: the `sparsecc`
command, and `python -I -m sparsecc`, never look there.
"""

import os
import sys

try:
    import signal
except KeyboardInterrupt:  # nothing has begun
    os._exit(130)


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
