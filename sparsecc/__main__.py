"""`python -m sparsecc` is the `sparsecc` command."""

from __future__ import annotations

import sys

from sparsecc.cli import main

if __name__ == "__main__":
    sys.exit(main())
