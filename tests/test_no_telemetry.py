"""Nothing is reported to anyone: the libraries that would are told not to before they are loaded."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CODE = """
import sys, time
from pathlib import Path
from sparsecc.runtime.session import open_session
runner = open_session(Path(sys.argv[1]))
time.sleep(float(sys.argv[2]))
"""


def run(home: Path, *before: str, seconds: float, **environment: str) -> None:
    """Load a model in ONNX Runtime through sparsecc in a process with a home of its own."""
    own = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY" and not k.startswith("XDG_")}
    model = str(ROOT / "models" / "digits_lstm.onnx")
    command = [*before, sys.executable, "-c", CODE, model, str(seconds)]
    subprocess.run(command, env={**own, "HOME": str(home), **environment}, cwd=ROOT, check=True)


def test_the_runtime_makes_no_device_identifier(tmp_path: Path) -> None:
    (tmp_path / "told").mkdir()
    run(tmp_path / "told", seconds=0.5)
    assert list((tmp_path / "told").rglob("*")) == []


@pytest.mark.slow
def test_no_connection_is_opened(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    strace = ["strace", "-f", "-qq", "-e", "trace=connect,sendto", "-o", str(trace)]
    try:
        subprocess.run([*strace, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("strace is not installed, or may not trace here")
    run(tmp_path, *strace, seconds=20)
    assert "AF_INET" not in trace.read_text()
