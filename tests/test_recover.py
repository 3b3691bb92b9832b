"""What samples do for accuracy: distillation from the command's own options, and samples that say nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sparsecc
from sparsecc.errors import InputError
from sparsecc.report.verdict import lowest_agreement

SAMPLES = "models/digits.py:calibration"
METRIC = "models/digits.py:accuracy"


@pytest.fixture
def model(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The reference CNN, seen from the root of the project."""
    monkeypatch.chdir(root)
    return Path("models/digits_resnet.onnx")


def test_distillation_learns_from_unlabelled_samples(model: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="distillation needs torch")
    options: dict[str, Any] = {"ratio": 0.7, "calib": SAMPLES, "evaluate": METRIC, "measure": False}
    plain = sparsecc.compile(model, output=tmp_path / "plain", recover="none", **options)
    taught = sparsecc.compile(
        model, output=tmp_path / "taught", recover="distill", recover_budget="steps:30", **options
    )
    assert taught.report["accuracy"]["after"] > plain.report["accuracy"]["after"] + 0.1
    facts = next(p["facts"] for p in taught.report["passes"] if p["name"] == "distill")
    assert facts["loss_after"] <= facts["loss_before"]
    assert facts["steps"] > 0
    assert taught.plan["repaired"]


@pytest.mark.parametrize(
    ("ratio", "evaluate", "said"), [(0.7, None, True), (0.7, METRIC, False), (0.1, None, False)]
)
def test_changed_answers_are_said_where_no_metric_tells(
    ratio: float, evaluate: str | None, said: bool, model: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {
        "calib": SAMPLES,
        "criterion": "l2",
        "allocator": "uniform",
        "recover": "none",
    }
    made = sparsecc.compile(
        model, ratio=ratio, evaluate=evaluate, measure=False, output=tmp_path / "out", **options
    )
    assert any("are others than before" in warning for warning in made.report["warnings"]) == said
    assert (lowest_agreement(made.report["fidelity"]) < 0.9) == (ratio == 0.7)


def test_samples_that_never_vary_are_survived(model: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "zeros.npz", image=np.zeros((8, 1, 16, 16), np.float32))
    made = sparsecc.compile(
        model, ratio=0.3, calib=str(tmp_path / "zeros.npz"), measure=False, output=tmp_path / "out"
    )
    assert made.report["verification"]["max_relative_error"] < 1e-4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"calib": "{}/empty.npz"}, "holds no samples"),
        ({"inputs": {"imag": (1, 1, 16, 16)}}, "no such input"),
        ({"inputs": {"image": (1, 16)}}, "has rank 2"),
        ({"recover": "distill"}, "give --calib"),
    ],
)
def test_bad_options_write_nothing(
    model: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    np.savez(tmp_path / "empty.npz", image=np.zeros((0, 1, 16, 16), np.float32))
    if "calib" in options:
        options = {"calib": str(options["calib"]).format(tmp_path)}
    with pytest.raises(InputError, match=message):
        sparsecc.compile(model, ratio=0.3, measure=False, output=tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
