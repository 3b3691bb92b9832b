"""The pytest plug-in, run in pytest processes of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_gate import stack

RUN = """
def test_it(sparsecc_latency):
    import numpy as np
    feeds = {{"x": np.ones((64, 128), np.float32)}}
    from dataclasses import replace
    quick = replace(sparsecc_latency, pairs=40, seconds=2.0)
    quick.assert_not_slower(r"{now}", r"{before}", max_regression={allowed}, feeds=feeds)
"""


def run_test(folder: Path, now: Path, before: Path, allowed: float) -> subprocess.CompletedProcess[str]:
    (folder / "test_inner.py").write_text(RUN.format(now=now, before=before, allowed=allowed))
    root = Path(__file__).resolve().parent.parent
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "sparsecc.pytest_plugin"]
    command += ["--rootdir", str(folder), "--sparsecc-inconclusive=fail", str(folder / "test_inner.py")]
    environment = {"PYTHONPATH": str(root), "PATH": "/usr/bin:/bin", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


@pytest.mark.parametrize(("layers", "passes"), [((20, 8), True), ((8, 20), False)])
def test_a_slower_model_fails_its_test(tmp_path: Path, layers: tuple[int, int], passes: bool) -> None:
    before, now = (stack(tmp_path / f"{side}.onnx", n) for side, n in zip("ab", layers, strict=True))
    done = run_test(tmp_path, now, before, 1.0 if passes else 0.3)
    assert (done.returncode == 0) is passes, done.stdout + done.stderr
    if not passes:
        assert "b.onnx is slower" in done.stdout or "bytes of model" in done.stdout
