"""Few samples judge all in turn; where a result is not usable, what would be is tried and told as measured."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sparsecc
from sparsecc.cli.compile_view import compile_view
from sparsecc.cli.view import Line
from sparsecc.data.samples import CalibrationSet
from sparsecc.loss.quality import told
from sparsecc.report.verdict import verdict
from sparsecc.runtime.session import open_session
from sparsecc.tasks import siblings
from sparsecc.tasks.compile import compile_model
from tests.repair_models import mlp, normal


@pytest.mark.parametrize(("number", "fits"), [(1, 1), (2, 3), (3, 4), (4, 4), (9, 4), (15, 4), (16, 1)])
def test_few_samples_are_each_held_out_once(number: int, fits: int, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(6 * number, dtype=np.float32).reshape(number, 6))
    given = CalibrationSet(str(tmp_path / "a.npy"), mlp().model)
    sets = [given, *given.folds()]
    assert len(sets) == fits
    if fits > 1:
        held_out = [batch["x"] for one in sets for batch in one.held_out.batches]
        assert sorted(np.concatenate(held_out)[:, 0]) == list(range(0, 6 * number, 6))
    for one in sets[1:]:
        assert one.samples.number + one.held_out.number == number
        both = [
            {tuple(x) for batch in part.batches for x in batch["x"]} for part in (one.samples, one.held_out)
        ]
        assert not both[0] & both[1]


def images(models_dir: Path) -> np.ndarray:
    """200 training images as the digits models take them: (200, 1, 16, 16)."""
    prepare = runpy.run_path(str(models_dir / "digits.py"))["prepare"]
    with np.load(models_dir / "digits.npz") as stored:
        prepared: np.ndarray = prepare(stored["calibration_images"])
    return prepared


def first_lines(report: dict[str, Any]) -> list[str]:
    return [block.text for block in compile_view(report)[:2] if isinstance(block, Line)]


def test_few_samples_judge_fits_that_they_had_no_part_in(models_dir: Path, tmp_path: Path) -> None:
    """Repair learns nine images by heart: judged by these, the result would be several decibels too good."""
    options: dict[str, Any] = {"ratio": 0.5, "criterion": "l2", "allocator": "uniform", "measure": False}
    model, pixels = models_dir / "digits_lstm.onnx", images(models_dir)
    np.savez(tmp_path / "calib.npz", image=pixels[:12])
    calib = str(tmp_path / "calib.npz")
    made = sparsecc.compile(model, output=tmp_path / "out", calib=calib, **options)
    facts = made.report["fidelity"]
    assert (facts["samples"], facts["fits"], facts["data"]) == (12, 4, "held-out samples")
    low, high = facts["interval_db"]
    dense, small = (
        open_session(path).run({"image": pixels[40:]}) for path in (model, tmp_path / "out/model.onnx")
    )
    assert low <= told([dense], [small])["quality_db"] <= high
    assert "on 12 held-out samples, each out of one of 4 fits" in first_lines(made.report)[0]


def test_the_interval_of_several_fits_reaches_from_the_worst_to_the_best() -> None:
    dense = normal(8, 400)
    errors = np.repeat([0.01, 0.1, 0.1, 0.3], 2)[:, None] * normal(8, 400, seed=1)
    batches = [{"y": rows} for rows in np.split(dense, 8)]
    found = [{"y": rows} for rows in np.split(dense + errors, 8)]
    low, high = told(batches, found, fits=(2, 2, 2, 2))["interval_db"]
    assert (low, high) == pytest.approx((10.5, 40), abs=0.7)
    alone = told(batches, found)["interval_db"]
    assert alone[1] < 30


def test_what_would_be_of_use_is_measured(models_dir: Path, tmp_path: Path) -> None:
    """The figure of a next step is that of a compile which takes it."""
    model = models_dir / "digits_lstm.onnx"
    np.savez(tmp_path / "calib.npz", image=images(models_dir)[:40])
    calib = str(tmp_path / "calib.npz")
    options: dict[str, Any] = {"calib": calib, "measure": False, "criterion": "l2", "allocator": "uniform"}
    made = sparsecc.compile(model, ratio=0.85, output=tmp_path / "out", **options)
    best, *others = made.report["next_steps"]
    assert made.report["verdict"]["judgement"] == "useless"
    assert best["judgement"] == "usable"
    assert best["flags"] == "--quantize int8 instead of pruning"
    taken = sparsecc.compile(model, quantize="int8", output=tmp_path / "taken", **options)
    assert best["quality_db"] == pytest.approx(taken.report["fidelity"]["quality_db"], abs=0.2)
    half = next(step for step in others if step["flags"].startswith("--ratio"))
    taken = sparsecc.compile(
        model, ratio=float(half["flags"].split()[-1]), output=tmp_path / "half", **options
    )
    assert half["quality_db"] == pytest.approx(taken.report["fidelity"]["quality_db"], abs=0.2)
    assert first_lines(made.report)[0].startswith("Not usable: try --quantize int8 instead of pruning (")
    assert "next_steps" not in taken.report or taken.report["verdict"]["judgement"] == "useless"


def test_what_takes_too_long_is_not_tried(
    models_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Types alone come first, and take less than a lower ratio."""
    np.savez(tmp_path / "calib.npz", image=images(models_dir)[:40])
    options: dict[str, Any] = {"criterion": "l2", "allocator": "uniform", "measure": False}
    asked = {
        "model": str(models_dir / "digits_lstm.onnx"),
        "options": {"calib": str(tmp_path / "calib.npz"), "ratio": 0.85, **options},
    }
    found = []
    for work in (1e6, 1e9, 1e12):
        monkeypatch.setattr(siblings, "AFTERWARDS", work)
        report = compile_model({**asked, "output": str(tmp_path / f"{work}")}, lambda event: None)["report"]
        found.append([step["flags"].split()[0] for step in report.get("next_steps", [])])
    assert found == [[], ["--quantize"], ["--quantize", "--ratio", "--ratio"]]


def test_steps_that_do_not_help_are_said_to_be_tried() -> None:
    step = {"flags": "--ratio 0.1", "judgement": "useless", "quality_db": 2.0, "agreement": None}
    report = {
        "asked": {"ratio": 0.2}, "removed": {"share": 0.2}, "next_steps": [step],
        "fidelity": {"quality_db": 1.0, "parts": {"y": 1.0}, "data": "held-out samples", "samples": 9},
    }  # fmt: skip
    advice = verdict(report).advice
    assert advice.startswith("--ratio 0.1 (2 dB, not usable) is of no use either, as was measured")
    assert advice.endswith("--recover distill was not tried")
    step |= {"judgement": "doubtful", "quality_db": 9.0}
    assert verdict(report).advice == "try --ratio 0.1 (9 dB, doubtful), as was measured on the same samples"


def test_advice_names_what_is_usable_alone_where_something_is() -> None:
    judged = {"--quantize int8": "usable", "--ratio 0.1": "doubtful", "--ratio 0.15": "useless"}
    steps = [
        {"flags": flags, "judgement": use, "quality_db": 20.0, "agreement": None}
        for flags, use in judged.items()
    ]
    report = {
        "asked": {"ratio": 0.3}, "removed": {"share": 0.3}, "next_steps": steps,
        "fidelity": {"quality_db": 1.0, "parts": {"y": 1.0}, "data": "held-out samples", "samples": 9},
    }  # fmt: skip
    assert verdict(report).advice == "try --quantize int8 (20 dB), as was measured on the same samples"
    del steps[0]
    assert verdict(report).advice == "try --ratio 0.1 (20 dB, doubtful), as was measured on the same samples"
