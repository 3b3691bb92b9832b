"""Coverage-guided fuzzing with atheris, where it is installed: python -m tests.fuzz.run loader [libFuzzer options]"""

from __future__ import annotations

import sys


def main() -> None:
    """Fuzz the target that the first argument names."""
    import atheris  # type: ignore[import-not-found,import-untyped,unused-ignore]

    with atheris.instrument_imports(include=["sparsecc"]):
        from tests.fuzz.targets import TARGETS
    target = TARGETS[sys.argv.pop(1)]
    atheris.Setup(sys.argv, target)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
