"""The example of a user's own loop: it prunes, trains on, exports and compiles, with few lines of ours."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="torch is not installed: pip install 'sparsecc[torch]'")


def test_few_lines_are_ours(root: Path) -> None:
    lines = (root / "examples" / "train_on.py").read_text().splitlines()
    marked = [line for line in lines if line.rstrip().endswith("# *")]
    assert 0 < len(marked) < 10
    assert all("sparsecc" in line for line in marked)
    assert not [line for line in lines if "sparsecc." in line and line not in marked]


@pytest.mark.slow
def test_the_example_trains_prunes_and_compiles(root: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(root / "examples" / "train_on.py"), str(tmp_path / "out")]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    said = dict(re.findall(r"^(dense|pruned|trained on) ([\d.]+)$", done.stdout, re.MULTILINE))
    assert float(said["trained on"]) > float(said["dense"]) - 0.05 > 0.8
    assert (tmp_path / "out" / "bundle" / "model.onnx").exists()
