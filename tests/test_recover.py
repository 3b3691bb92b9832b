"""What samples do for accuracy: distillation from the command's own options, and samples that say nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sparsecc
from sparsecc.cli.compile_view import compile_view
from sparsecc.cli.view import Line
from sparsecc.errors import GoalError, InputError
from sparsecc.loss.judge import lowest_agreement

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


@pytest.mark.parametrize(("ratio", "evaluate", "said"), [(0.85, None, True), (0.1, METRIC, False)])
def test_a_result_that_is_not_usable_is_said_first_here_and_on_the_page(
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
    assert (made.report["verdict"]["judgement"] == "useless") == said
    assert (lowest_agreement(made.report["fidelity"]) < 0.8) == said
    first = compile_view(made.report)[0]
    assert isinstance(first, Line)
    assert first.text.startswith("Not usable: try --" if said else "")
    assert first.style == ("bad" if said else "title")
    assert ("Not usable" in (tmp_path / "out" / "report.html").read_text()) == said


def test_a_result_below_what_was_demanded_is_not_written(model: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"calib": SAMPLES, "criterion": "l2", "allocator": "uniform", "measure": False}
    for demand, message in (
        ({"min_quality": 60}, "keeps .* dB on .* held-out samples, less than --min-quality 60dB"),
        ({"min_agreement": 0.999}, "of the answers are the same on .* less than --min-agreement 0.999"),
    ):
        with pytest.raises(GoalError, match=message):
            sparsecc.compile(model, ratio=0.6, recover="none", output=tmp_path / "out", **demand, **options)
        assert not (tmp_path / "out").exists()
    sparsecc.compile(model, ratio=0.1, output=tmp_path / "out", min_quality=1, min_agreement=0.5, **options)
    with pytest.raises(InputError, match="--min-quality is judged on samples"):
        sparsecc.compile(model, ratio=0.1, min_quality=1)


def test_what_is_known_before_long_work_is_said_then(model: Path, tmp_path: Path) -> None:
    heard: list[dict[str, Any]] = []
    options: dict[str, Any] = {"dry_run": True, "on_event": heard.append}
    sparsecc.compile(model, ratio=0.3, **options)
    (unjudged,) = [event for event in heard if "say" in event]
    assert "give some with --calib" in unjudged["say"]
    assert unjudged["stage"] == "load"
    heard.clear()
    sparsecc.compile(model, ratio=0.8, calib=SAMPLES, allocator="distortion", **options)
    (forecast,) = [event for event in heard if "say" in event]
    assert forecast["forecast"]["quality_db"] < 20
    assert "forecast by loss curves: outputs about" in forecast["say"]
    assert "dB at ratio 0.8, before repair, which gives back" in forecast["say"]
    heard.clear()
    sparsecc.compile(model, ratio=0.8, calib=SAMPLES, allocator="distortion", recover="none", **options)
    (forecast,) = [event for event in heard if "say" in event]
    assert "before repair" not in forecast["say"]


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
