"""What a gate reads and writes: its configuration, Markdown, JUnit, histories, benchmark services, the action."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml

from sparsecc.errors import InputError
from sparsecc.gate.checks import Check, _macs
from sparsecc.gate.config import read_gate_config, read_share
from sparsecc.gate.gate import GateResult, gate
from sparsecc.gate.report import (
    append_history,
    bencher,
    github_benchmark,
    history_of,
    junit,
    markdown,
    text_rows,
)
from sparsecc.measure.statistics import LogRatio
from sparsecc.report.html import trend_page
from sparsecc.report.trend_page import HEIGHT, TrendPage
from sparsecc.system.plain_yaml import LARGEST
from tests.test_gate import FEEDS, SHORT, stack

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


def test_medians_go_to_the_benchmark_services() -> None:
    told = {"before_ms": {"p50": 2.0, "p90": 2.5}, "after_ms": {"p50": 1.0, "p90": 1.5}}
    results: list[dict[str, Any]] = [{"name": "m", "latency": told}, {"name": "n", "latency": None}]
    assert json.loads(github_benchmark(results)) == [
        {"name": "m: baseline", "unit": "ms", "value": 2.0, "extra": "p90 2.5 ms"},
        {"name": "m: current", "unit": "ms", "value": 1.0, "extra": "p90 1.5 ms"},
    ]
    assert json.loads(bencher(results))["m: current"] == {"latency": {"value": 1e6, "upper_value": 1.5e6}}


def test_the_action_installs_itself_unless_told_otherwise() -> None:
    action = yaml.safe_load((ROOT / "action.yml").read_text())
    install = next(step for step in action["runs"]["steps"] if "pip install" in step.get("run", ""))
    assert action["inputs"]["version"]["default"] == ""
    assert install["env"]["HERE"] == "${{ github.action_path }}"
    assert (ROOT / "pyproject.toml").is_file()  # which is there, beside action.yml
