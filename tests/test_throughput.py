"""Samples a second: how a model serves most of them, and compiling to a rate."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import yaml

import sparsecc
from sparsecc.decide.goals import Goal, Trial, judge, words_of_serving
from sparsecc.errors import InputError
from sparsecc.measure.serving import Serving
from sparsecc.measure.throughput import (
    BATCHES,
    LARGEST,
    batched,
    batches_of,
    best_serving,
    samples_in,
)
from sparsecc.options import CompileOptions, reading
from tests.test_budget import perceptron


def test_a_batch_holds_the_samples_over_and_over() -> None:
    feeds = {"x": np.arange(6.0).reshape(3, 2), "ids": np.array([7, 8, 9])}
    made = batched(feeds, 5)
    assert made["ids"].tolist() == [7, 8, 9, 7, 8]
    assert made["x"][3].tolist() == feeds["x"][0].tolist()
    assert samples_in(feeds) == 3
    assert samples_in({**feeds, "scale": np.array(1.0)}) == 1
    assert list(batches_of(feeds)) == list(BATCHES)
    assert list(batches_of({"x": np.zeros((1, LARGEST // 16), np.float32)})) == [1, 2, 4]


def test_a_model_serves_in_batches_where_it_takes_any(models_dir: Path, tmp_path: Path) -> None:
    image = {"image": np.zeros((3, 1, 16, 16), np.float32)}
    found = best_serving(models_dir / "digits_resnet.onnx", image, any_batch=True)
    assert found.batch in BATCHES
    assert found.rate > 0
    assert found.streams >= 1
    fixed = best_serving(
        perceptron(tmp_path / "m.onnx"), {"h0": np.zeros((32, 64), np.float32)}, any_batch=False
    )
    assert fixed.batch == 32


def test_a_rate_is_a_goal_in_time_a_sample() -> None:
    goal, trial = Goal(throughput=200.0), Trial(0.5, 0.5, 10, 20)
    served = trial.served(Serving(100.0, 1, 2), Serving(150.0, 8, 2))
    assert goal.is_timed
    assert served.speedup == pytest.approx(1.5)
    assert goal.excess(served) == pytest.approx(math.log(200 / 150))
    assert goal.excess_of_dense(served) == pytest.approx(math.log(2))
    assert "the best is 1.50x, 150 a second in batches of 8 in 2 streams" in goal.short(
        served, goal.excess(served)
    )
    assert words_of_serving({"rate": 12345.6, "batch": 1, "streams": 1}) == "12,346 a second"
    sides = {"before": Serving(100.0, 1, 2).to_json(), "after": Serving(196.0, 8, 2).to_json()}
    found = {"bytes": {"before": 2, "after": 1}, "throughput": sides}
    assert judge({"asked": {"throughput": 200.0}}, found)["met"]
    assert not judge({"asked": {"throughput": 250.0}}, found)["met"]


def test_it_is_asked_for_with_a_unit_and_measured_here_alone() -> None:
    assert reading.rate("200/s") == reading.rate("200") == 200
    with pytest.raises(ValueError, match="not a rate"):
        reading.rate("200/h")
    with pytest.raises(InputError, match="--throughput is measured on this machine"):
        Goal.of(CompileOptions(throughput=10.0, device="ssh://pi@board"))
    with pytest.raises(InputError, match="different budgets"):
        CompileOptions(throughput=10.0, speedup=2.0)


def test_a_compile_tells_how_the_result_serves(tmp_path: Path) -> None:
    made = sparsecc.compile(perceptron(tmp_path / "m.onnx"), throughput=1.0, output=tmp_path / "out")
    served = made.report["throughput"]
    assert made.report["goal"]["met"]
    assert served["after"]["batch"] == 32
    assert all(trial["serving"]["rate"] > 0 for trial in made.report["trials"])
    assert "throughput" not in yaml.safe_load((tmp_path / "out" / "recipe.yaml").read_text())
    assert "It serves" in (tmp_path / "out" / "report.html").read_text()
