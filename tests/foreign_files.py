"""What the tests of strangers' files share."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparsecc.bundle.folder import manifest_of, write_json
from sparsecc.cli import main

MODEL = Path(__file__).resolve().parents[1] / "models" / "digits_lstm.onnx"


def seal(bundle: Path) -> None:
    write_json(bundle / "manifest.json", manifest_of(bundle, {}))


def errors_of(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, list[str]]:
    code = main([str(one) for one in arguments])
    told = "sparsecc: no samples", "sparsecc: forecast"  # said of the user's own model, before long work
    return code, [
        line for line in capsys.readouterr().err.splitlines() if line.strip() and not line.startswith(told)
    ]
