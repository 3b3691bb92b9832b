"""The gate: its decision rule on given intervals, its checks without a clock, and verdicts on real models."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
import yaml
from onnx import TensorProto, helper, numpy_helper

import sparsecc
from sparsecc.errors import InputError
from sparsecc.gate.checks import Check, _macs, clock_free_checks, same_answers
from sparsecc.gate.config import read_gate_config, read_share
from sparsecc.gate.gate import GateResult, decide, gate, is_decisive
from sparsecc.gate.report import (
    append_history,
    bencher,
    github_benchmark,
    history_of,
    junit,
    markdown,
    text_rows,
)
from sparsecc.measure.interleave import Budget
from sparsecc.measure.statistics import LogRatio
from sparsecc.report.html import trend_page
from sparsecc.report.trend_page import HEIGHT, TrendPage
from sparsecc.system.plain_yaml import LARGEST

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


BAD = Check("size", 10, 20, False, "bytes of model: 10 before, 20 now")
RESULTS = [
    GateResult("a|b", "OK", "fine", 0.05, ()),
    GateResult("<c>\x1b[31m", "REGRESSION", "too large & slow", 0.05, (BAD,)),
    GateResult("d", "INCONCLUSIVE", "noise", 0.05, (), self_check=LogRatio(0, -0.2, 0.2)),
]
DOCUMENTS = [result.to_json() for result in RESULTS]


def test_junit_counts_failures_and_errors_and_parses() -> None:
    suite = ElementTree.fromstring(junit(DOCUMENTS))
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("3", "1", "1")
    assert suite[1].find("failure") is not None
    assert suite[1].get("name") == "<c>[31m"
    assert suite[2].find("error") is not None


def test_markdown_has_one_row_each_and_escapes_names() -> None:
    lines = markdown(DOCUMENTS).splitlines()
    assert len(lines) == 5
    assert lines[2].startswith("| a\\|b | **OK** | not timed |")
    assert "&lt;c>" in lines[3]


def test_text_names_the_failed_check_and_the_self_check() -> None:
    assert ("size", "FAIL bytes of model: 10 before, 20 now") in text_rows(DOCUMENTS[1])
    assert ("self-check", "the baseline against itself: -18.1% to +22.1%") in text_rows(DOCUMENTS[2])


def test_a_timed_result_is_json_and_goes_into_the_history(tmp_path: Path) -> None:
    path = stack(tmp_path / "a.onnx", 10)
    result = gate(path, path, max_regression=0.5, budget=SHORT, feeds=FEEDS, name="net")
    data = json.loads(json.dumps(result.to_json()))
    assert data["verdict"] == "OK"
    assert data["latency"]["samples_ms"]["cpu_before"]
    assert any(name == "wall clock" for name, _ in text_rows(data))
    history = tmp_path / "ci" / "history.jsonl"
    for when in ("2026-01-01", "2026-01-02"):
        append_history(history, data, when=when, revision="abc")
    append_history(history, DOCUMENTS[1], when="2026-01-03")
    entries = history_of(history)
    assert [entry["when"] for entry in entries] == ["2026-01-01", "2026-01-02", "2026-01-03"]
    assert entries[0]["current_ms"] > 0
    page = trend_page(entries)
    assert page.count("<circle") == 2
    assert "2 runs: 2 OK" in page
    assert "2026-01-02, abc, " in page
    assert f"1 run: 1 {RESULTS[1].verdict}" in page


def test_a_trend_shows_changes_where_they_lie() -> None:
    line = {"name": "net", "verdict": "REGRESSION", "when": "t", "baseline_ms": 1.0, "current_ms": 1.1}
    slower, same = ({**line, "change": c, "low": c - 0.01, "high": c + 0.01} for c in (0.1, 0.0))
    (trend,) = TrendPage.of([slower, same]).trends
    first, second = trend.points
    assert first.x < second.x
    assert first.y < second.y == pytest.approx(HEIGHT / 2)
    assert first.top < first.y < first.bottom
    assert TrendPage.of([{"name": "<b>", "verdict": "OK"}]).trends[0].points == ()
    assert "<b>" not in trend_page([{"name": "<b>", "verdict": "OK"}])


def test_a_damaged_history_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "h.jsonl").write_text("{}\nnot json\n")
    with pytest.raises(InputError, match="line 2 is no result of a gate"):
        history_of(tmp_path / "h.jsonl")


def test_the_configuration_gives_one_entry_per_model(tmp_path: Path) -> None:
    file = tmp_path / "gate.yaml"
    file.write_text(
        "- {name: net, current: a.onnx, baseline: old/a.onnx, max_regression: 5%, checks: [size]}\n"
    )
    (entry,) = read_gate_config(file)
    assert (entry.current, entry.baseline) == (tmp_path / "a.onnx", tmp_path / "old" / "a.onnx")
    assert (entry.max_regression, entry.threads, entry.checks) == (0.05, 1, ("size",))


GOOD = "name: n, current: a, baseline: b, max_regression: 0.05"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("- {name: [", "is not plain YAML"),
        ("name: n", "must be a list"),
        ("- 3", "entry 1: must be a mapping"),
        ("- {name: n, current: a, baseline: b}", "'max_regression' is missing"),
        (f"- {{{GOOD}, speed: 3}}", "unknown key 'speed'"),
        (f"- {{{GOOD}, threads: 0}}", "threads must be"),
        (f"- {{{GOOD}, checks: [luck]}}", "checks must be"),
        (f"- {{{GOOD}}}\n- {{{GOOD}}}", "two models are called 'n'"),
        ("- !!int ''", "is not plain YAML"),
        ("- " + "[" * 9000, "nested too deeply"),
        ("- &a [x]\n- {name: *a, current: a, baseline: b, max_regression: 1}", "aliases are not allowed"),
        ("# " + "x" * LARGEST, "too large"),
        ("- !!python/object/apply:os.getcwd []", "is not plain YAML"),
    ],
)
def test_a_wrong_configuration_is_one_line(tmp_path: Path, text: str, told: str) -> None:
    file = tmp_path / "gate.yaml"
    file.write_text(text)
    with pytest.raises(InputError) as caught:
        read_gate_config(file)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("text", "share"), [("5%", 0.05), (0.07, 0.07), ("0.5", 0.5)])
def test_shares_are_read_in_both_spellings(text: object, share: float) -> None:
    assert read_share("here", text) == pytest.approx(share)


@pytest.mark.parametrize("text", ["fast", "0", "-5%", "nan"])
def test_other_shares_are_refused(text: str) -> None:
    with pytest.raises(InputError):
        read_share("here", text)


ROOT = Path(__file__).resolve().parent.parent


def options_of_gate() -> set[str]:
    from sparsecc.cli.gate_ import command

    return {name for option in command.params for name in option.opts if name.startswith("--")}


def test_the_action_and_the_examples_use_options_that_exist() -> None:
    texts = [ROOT / "action.yml", *sorted((ROOT / "examples" / "ci").glob("*.y*ml"))]
    assert len(texts) == 5
    for path in texts:
        text = path.read_text()
        assert yaml.safe_load(text), path
        calls = [line for line in text.splitlines() if "sparsecc gate" in line or "what=(" in line]
        used = {word for line in calls for word in re.findall(r"(?<=\s|\()--[a-z-]+", line)}
        assert used <= options_of_gate(), path


def test_the_example_configuration_is_one() -> None:
    entries = read_gate_config(ROOT / "examples" / "ci" / "gate.yaml")
    assert [entry.name for entry in entries] == ["classifier", "detector"]


def gate_step() -> dict[str, Any]:
    steps = yaml.safe_load((ROOT / "action.yml").read_text())["runs"]["steps"]
    (step,) = (step for step in steps if step.get("id") == "gate")
    return dict(step)


@pytest.mark.parametrize(
    ("code", "inconclusive", "ends", "verdict"),
    [
        (0, "fail", 0, "OK"),
        (1, "fail", 1, "REGRESSION"),
        (4, "fail", 4, "INCONCLUSIVE"),
        (4, "warn", 0, "INCONCLUSIVE"),
        (2, "fail", 2, ""),
    ],
)
def test_the_action_ends_as_the_gate_does(
    tmp_path: Path, code: int, inconclusive: str, ends: int, verdict: str
) -> None:
    stand_in = tmp_path / "sparsecc"
    stand_in.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\nexit {code}\n')
    stand_in.chmod(0o755)
    given = {"CURRENT": "a b.onnx", "BASELINE": "$(touch x)", "CONFIG": "", "MAX_REGRESSION": "5%"}
    given |= {"THREADS": "1", "INCONCLUSIVE": inconclusive, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    files = {"GITHUB_OUTPUT": tmp_path / "out", "GITHUB_STEP_SUMMARY": tmp_path / "summary"}
    environment = given | {name: str(path) for name, path in files.items()}
    script = gate_step()["run"]
    done = subprocess.run(
        ["bash", "-eo", "pipefail", "-c", script], env=environment, cwd=tmp_path, check=False
    )
    assert done.returncode == ends
    asked = (tmp_path / "asked").read_text()
    assert asked.startswith("gate a b.onnx --baseline $(touch x) --max-regression 5%")
    assert not (tmp_path / "x").exists()
    if verdict:
        assert (tmp_path / "out").read_text() == f"verdict={verdict}\n"


def test_files_of_strangers_that_a_gate_reads_are_plain(tmp_path: Path) -> None:
    """A pipe is refused at once, and a report of no sense is none."""
    os.mkfifo(tmp_path / "gate.yaml")
    with pytest.raises(InputError, match="not a plain file"):
        read_gate_config(tmp_path / "gate.yaml")
    with pytest.raises(InputError, match="not a plain file"):
        history_of(tmp_path / "gate.yaml")
    for text in ("[" * 200_000, "{}", "[1]", '{"after": {"macs": NaN}}', '{"after": {"macs": true}}'):
        (tmp_path / "report.json").write_text(text)
        assert _macs(tmp_path) is None


TIMED = {"low": 0, "high": 1, "baseline_ms": 1, "current_ms": 1}
NO_RESULTS: tuple[dict[str, Any], ...] = (
    {},
    {"low": "x"},
    {"high": math.inf},
    {"baseline_ms": None},
    {"current_ms": []},
)


@pytest.mark.parametrize(
    "line",
    [
        "[" * 200_000,
        "[]",
        "{",
        *(json.dumps({"name": "m", "change": 0.1, **(TIMED | one if one else {})}) for one in NO_RESULTS),
    ],
)
def test_a_line_that_no_gate_wrote_is_named(line: str, tmp_path: Path) -> None:
    file = tmp_path / "history.jsonl"
    file.write_text('{"name": "m", "verdict": "OK"}\n' + line + "\n")
    with pytest.raises(InputError, match=r"history\.jsonl, line 2 is no result of a gate"):
        history_of(file)


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


def test_medians_go_to_the_benchmark_services() -> None:
    told = {"before_ms": {"p50": 2.0, "p90": 2.5}, "after_ms": {"p50": 1.0, "p90": 1.5}}
    results: list[dict[str, Any]] = [{"name": "m", "latency": told}, {"name": "n", "latency": None}]
    assert json.loads(github_benchmark(results)) == [
        {"name": "m: baseline", "unit": "ms", "value": 2.0, "extra": "p90 2.5 ms"},
        {"name": "m: current", "unit": "ms", "value": 1.0, "extra": "p90 1.5 ms"},
    ]
    assert json.loads(bencher(results))["m: current"] == {"latency": {"value": 1e6, "upper_value": 1.5e6}}


@pytest.mark.parametrize("limit", [5, 5.0, "5", "500%"])
def test_a_limit_of_five_is_never_five_hundred_percent(limit: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"share|outside|give 0\.03"):
        gate(tmp_path, tmp_path, max_regression=float(limit) if not isinstance(limit, str) else 5.0)
    with pytest.raises(InputError, match="is not a share between 0 and 1"):
        sparsecc.gate("a.onnx", "b.onnx", max_regression=limit)
    with pytest.raises(InputError, match="is not a share between 0 and 1"):
        read_share("here", limit)


def test_the_action_installs_itself_unless_told_otherwise() -> None:
    action = yaml.safe_load((ROOT / "action.yml").read_text())
    install = next(step for step in action["runs"]["steps"] if "pip install" in step.get("run", ""))
    assert action["inputs"]["version"]["default"] == ""
    assert install["env"]["HERE"] == "${{ github.action_path }}"
    assert (ROOT / "pyproject.toml").is_file()  # which is there, beside action.yml
