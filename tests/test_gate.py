"""The gate: its decision rule on given intervals, its checks without a clock, and verdicts on real models."""

from __future__ import annotations

import json
import math
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

import sparsecc
from sparsecc.errors import InputError
from sparsecc.gate.checks import _macs, clock_free_checks, same_answers
from sparsecc.gate.config import read_share
from sparsecc.gate.gate import decide, gate, is_decisive
from sparsecc.measure.interleave import Budget
from sparsecc.measure.statistics import LogRatio

FIVE = math.log1p(0.05)
GATE = import_module("sparsecc.gate.gate")
"""The room, which the verb of the same name hides."""
SHORT = Budget(pairs=40, seconds=2.0, warmup_seconds=0.1)


@pytest.mark.parametrize(
    ("median", "low", "high", "verdict"),
    [
        (0.08, 0.06, 0.10, "REGRESSION"),
        (0.08, 0.001, 0.16, "REGRESSION"),
        (0.08, -0.001, 0.16, "INCONCLUSIVE"),
        (0.04, 0.03, 0.06, "INCONCLUSIVE"),
        (0.02, 0.01, 0.04, "OK"),
        (0.00, -0.20, 0.20, "INCONCLUSIVE"),
        (-0.09, -0.20, 0.02, "INCONCLUSIVE"),
        (-0.5, -0.6, -0.4, "OK"),
        (FIVE, FIVE - 0.01, FIVE + 0.01, "INCONCLUSIVE"),
    ],
)
def test_the_verdict_follows_from_the_interval(median: float, low: float, high: float, verdict: str) -> None:
    assert decide(LogRatio(median, low, high), 0.05) == verdict


def stack(path: Path, layers: int, width: int = 128) -> Path:
    """A chain of equal MatMuls."""
    weight = np.random.default_rng(0).standard_normal((width, width)).astype(np.float32) / 11
    names = ["x", *(f"h{i}" for i in range(layers - 1)), "y"]
    nodes = [helper.make_node("MatMul", [names[i], f"w{i}"], [names[i + 1]]) for i in range(layers)]
    shape: list[str | int | None] = ["N", width]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(weight, f"w{i}") for i in range(layers)],
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


FEEDS = {"x": np.ones((64, 128), np.float32)}


def test_a_model_with_half_more_work_is_a_regression(tmp_path: Path) -> None:
    before, now = stack(tmp_path / "a.onnx", 20), stack(tmp_path / "b.onnx", 30)
    result = gate(now, before, max_regression=0.2, checks=(), budget=SHORT, feeds=FEEDS)
    assert result.verdict == "REGRESSION", result.reason
    assert result.change is not None
    assert 0.3 < result.change[0] < 0.7


def test_a_model_that_is_no_slower_passes(tmp_path: Path) -> None:
    before, now = stack(tmp_path / "a.onnx", 30), stack(tmp_path / "b.onnx", 20)
    result = gate(now, before, max_regression=0.25, budget=SHORT, feeds=FEEDS)
    assert result.verdict == "OK", result.reason


def test_a_machine_that_cannot_resolve_the_threshold_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(GATE, "LOOKS", 1)
    few = Budget(pairs=5, seconds=0.1, warmup_seconds=0.0)
    clock = iter(np.random.default_rng(0).lognormal(15, 1.0, 100_000))
    now = [0]

    def jumping() -> int:
        now[0] += int(next(clock))
        return now[0]

    monkeypatch.setattr("sparsecc.measure.interleave.time.process_time_ns", jumping)
    result = gate(
        stack(tmp_path / "a.onnx", 3), tmp_path / "a.onnx", max_regression=0.03, checks=(), budget=few
    )
    assert result.verdict == "INCONCLUSIVE"
    assert "could not tell" in result.reason or "cannot resolve 3.0%" in result.reason


def test_a_decisive_answer_needs_no_machine_that_resolves_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A/A spreads over the limit; what is a third faster, or twice as slow, is an answer all the same."""
    a = stack(tmp_path / "a.onnx", 1)
    asked: list[bool] = []

    def measured(ratio: LogRatio) -> Any:
        def measure(bench: Any, first: Path, second: Path, *rest: Any) -> Any:
            asked.append(first == second)
            noise = LogRatio(0.0, -0.2, 0.2)
            return SimpleNamespace(ratio=lambda confidence: noise if first == second else ratio)

        return measure

    for ratio, verdict, alone in (
        (LogRatio(-0.35, -0.5, -0.2), "OK", False),
        (LogRatio(0.7, 0.5, 0.9), "REGRESSION", False),
        (LogRatio(0.06, 0.01, 0.11), "INCONCLUSIVE", True),
    ):
        asked.clear()
        monkeypatch.setattr(GATE.Bench, "measure", measured(ratio))
        other = stack(tmp_path / "b.onnx", 1)
        result = gate(other, a, max_regression=0.05, checks=(), feeds=FEEDS)
        assert (result.verdict, any(asked)) == (verdict, alone)
    assert is_decisive(LogRatio(0.0, -0.01, 0.01), math.log1p(0.05))
    assert not is_decisive(LogRatio(0.0, -0.01, 0.01), math.log1p(0.03))


def test_a_larger_file_fails_before_any_clock_runs(tmp_path: Path) -> None:
    before, now = stack(tmp_path / "a.onnx", 4), stack(tmp_path / "b.onnx", 5)
    result = gate(now, before, max_regression=0.1)
    assert result.verdict == "REGRESSION"
    assert result.comparison is None
    assert "not timed" in result.reason


def bundle(folder: Path, macs: int) -> Path:
    stack(folder / "model.onnx", 2)
    (folder / "report.json").write_text(json.dumps({"after": {"macs": macs}}))
    return folder


@pytest.mark.parametrize(("macs", "ok"), [(1000, True), (1040, True), (1060, False)])
def test_multiply_accumulates_are_read_from_bundles(tmp_path: Path, macs: int, ok: bool) -> None:
    now, before = bundle(tmp_path / "b", macs), bundle(tmp_path / "a", 1000)
    checks = {check.name: check for check in clock_free_checks(now, before, 0.05)}
    assert checks["macs"].ok is ok
    assert checks["size"].ok


def test_multiply_accumulates_are_those_of_one_sample_on_both_sides(models_dir: Path, tmp_path: Path) -> None:
    file = models_dir / "digits_resnet.onnx"
    made = sparsecc.compile(file, measure=False, output=tmp_path / "same")
    for now, before in ((file, tmp_path / "same"), (tmp_path / "same", file)):
        checks = {check.name: check for check in clock_free_checks(now, before, 0.05)}
        assert checks["macs"].before == checks["macs"].after == made.report["before"]["macs"]


def convs(path: Path, channels: int) -> Path:
    weights = [np.ones((channels, 16, 3, 3), np.float32), np.ones((16, channels, 1, 1), np.float32)]
    nodes = [helper.make_node("Conv", ["x", "w0"], ["h"]), helper.make_node("Conv", ["h", "w1"], ["y"])]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 16, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight, f"w{i}") for i, weight in enumerate(weights)],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def test_channels_that_leave_the_blocked_layout_fail(tmp_path: Path) -> None:
    before, now = convs(tmp_path / "a.onnx", 48), convs(tmp_path / "b.onnx", 45)
    checks = {check.name: check.ok for check in clock_free_checks(now, before, 0.05)}
    assert checks == {"kernels": True, "channels": False, "macs": True, "size": True}


def test_lost_integer_kernels_fail(tmp_path: Path) -> None:
    text = '<ir_version: 9, opset_import: ["" : 17]> m (uint8[2,4] x, uint8[4,4] w) => (int32[2,4] y)'
    onnx.save(onnx.parser.parse_model(text + " { y = MatMulInteger (x, w) }"), tmp_path / "a.onnx")
    now = stack(tmp_path / "b.onnx", 1)
    (lost,) = clock_free_checks(now, tmp_path / "a.onnx", 0.05, ("kernels",))
    (kept,) = clock_free_checks(tmp_path / "a.onnx", now, 0.05, ("kernels",))
    assert (lost.ok, kept.ok) == (False, True)


@pytest.mark.parametrize(("limit", "told"), [(0.01, r"0\.03 \(3 %\) to"), (1.1, r"0\.03 \(3 %\) to")])
def test_thresholds_below_the_noise_are_refused(tmp_path: Path, limit: float, told: str) -> None:
    with pytest.raises(InputError, match=told):
        gate(tmp_path, tmp_path, max_regression=limit)


def test_a_folder_without_a_model_and_unknown_checks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no model\.onnx"):
        gate(tmp_path, tmp_path, max_regression=0.05)
    path = stack(tmp_path / "a.onnx", 2)
    with pytest.raises(InputError, match="unknown gate check 'luck'"):
        gate(path, path, max_regression=0.05, checks=("luck",))


def classifier(path: Path, weights: np.ndarray) -> Path:
    text = (
        '<ir_version: 8, opset_import: ["": 17]> g (float[n, 3] x) => (float[n, 3] y) { y = MatMul (x, w) }'
    )
    model = ir.from_onnx_text(text, initializers=[ir.tensor(weights.astype(np.float32), name="w")])
    ir.save(model, path)
    return path


def test_answers_that_change_fail(tmp_path: Path) -> None:
    before = classifier(tmp_path / "a.onnx", np.eye(3))
    now = classifier(tmp_path / "b.onnx", np.eye(3)[[0, 2, 1]])
    samples = [{"x": np.eye(3, dtype=np.float32)[[0, 1, 2, 0]]}]
    same, other = (same_answers(before, model, samples, 0.75) for model in (before, now))
    assert (same.ok, same.after) == (True, 1.0)
    assert (other.ok, other.after) == (False, 0.5)
    result = gate(now, before, max_regression=0.05, samples=samples, min_agreement=0.75)
    assert result.verdict == "REGRESSION"
    assert "50.0% of answers the same, 75.0% asked" in result.reason


def test_multiply_accumulates_of_a_plain_file_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    text = (
        '<ir_version: 8, opset_import: ["": 17]> g (float[2, 3] x) => (float[2, 3] y) { y = MatMul (x, w) }'
    )
    ir.save(ir.from_onnx_text(text, initializers=[ir.tensor(np.eye(3, dtype=np.float32), name="w")]), path)
    assert _macs(path) == 18


@pytest.mark.parametrize("limit", [5, 5.0, "5", "500%"])
def test_a_limit_of_five_is_never_five_hundred_percent(limit: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"share|outside|give 0\.03"):
        gate(tmp_path, tmp_path, max_regression=float(limit) if not isinstance(limit, str) else 5.0)
    with pytest.raises(InputError, match="is not a share between 0 and 1"):
        sparsecc.gate("a.onnx", "b.onnx", max_regression=limit)
    with pytest.raises(InputError, match="is not a share between 0 and 1"):
        read_share("here", limit)
