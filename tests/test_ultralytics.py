"""The recipe for ultralytics works as it is written, with the library and its trainer.

ultralytics wants torchvision, and is no dependency: make an environment with it (`examples/ultralytics_yolo.py` says
how), add pytest and hypothesis, and run this file there. About two minutes a network.
"""

from __future__ import annotations

import importlib.util
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("ultralytics") is None,
        reason="needs ultralytics in an environment of its own: see examples/ultralytics_yolo.py",
    ),
]


@pytest.mark.parametrize("network", ["yolov8n.yaml", "yolo11n.yaml", "yolo12n.yaml"])
def test_a_yolo_is_pruned_trained_on_and_compiled(network: str, tmp_path: Path) -> None:
    example = ROOT / "examples" / "ultralytics_yolo.py"
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "YOLO_CONFIG_DIR": str(tmp_path),
        "YOLO_OFFLINE": "1",
    }
    done = subprocess.run(
        [sys.executable, example, network, tmp_path / "out", "1"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "dense mAP50" in done.stdout
    assert "trained on mAP50" in done.stdout
    bundle = tmp_path / "out" / "bundle"
    report = json.loads((bundle / "report.json").read_text())
    assert report["verification"]["status"] == "proved"
    assert (bundle / "model.onnx").is_file()
    assert report["before"]["macs"] < 0.75 * macs_of(network, tmp_path)


def macs_of(network: str, folder: Path) -> float:
    """Multiply-accumulates of one image of the dense network."""
    import torch

    import sparsecc

    example = runpy.run_path(str(ROOT / "examples" / "ultralytics_yolo.py"), run_name="example")
    dense = example["network"](network).eval()
    dense.model[-1].export, dense.model[-1].format = True, "onnx"
    found = sparsecc.compile(
        dense, example_inputs=(torch.zeros(1, 3, 64, 64),), measure=False, output=folder / "d"
    )
    return float(found.report["before"]["macs"])
