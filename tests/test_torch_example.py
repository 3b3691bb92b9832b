"""The examples of a user's own loop: they prune, train on, export and compile, with few lines of ours."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="torch is not installed: pip install 'sparsecc[torch]'")

LIBRARIES = {"train_on": (), "trainer": ("transformers", "accelerate"), "lightning_loop": ("lightning",)}
"""Example -> what it needs besides torch."""


@pytest.mark.parametrize("name", [*LIBRARIES, "ultralytics_yolo"])
def test_few_lines_are_ours(name: str, root: Path) -> None:
    lines = (root / "examples" / f"{name}.py").read_text().splitlines()
    marked = [line for line in lines if line.rstrip().endswith("# *")]
    assert 0 < len(marked) < 10
    assert all("sparsecc" in line for line in marked)
    assert not [line for line in lines if "sparsecc." in line and line not in marked]


@pytest.mark.slow
@pytest.mark.parametrize("name", LIBRARIES)
def test_the_example_trains_prunes_and_compiles(name: str, root: Path, tmp_path: Path) -> None:
    for library in LIBRARIES[name]:
        pytest.importorskip(library, reason=f"the example needs it: pip install {library}")
    command = [sys.executable, str(root / "examples" / f"{name}.py"), str(tmp_path / "out")]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    said = dict(re.findall(r"^(dense|pruned|trained on) ([\d.]+)$", done.stdout, re.MULTILINE))
    assert float(said["trained on"]) > float(said["dense"]) - 0.05 > 0.7
    assert (tmp_path / "out" / "bundle" / "model.onnx").exists()
