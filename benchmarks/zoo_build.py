"""Builds the whole zoo with both exporters and checks it against torch: `python benchmarks/zoo_build.py`.

Prints the table of `python -m tests.zoo.export all`; `--json FILE` keeps the rows, `fast` builds a part.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.zoo.report import main

if __name__ == "__main__":
    main(sys.argv[1:] or ["all"])
