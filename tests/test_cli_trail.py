"""`--log-json` and `--debug`: what happened, for machines and for bug reports."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

import pytest

from sparsecc.cli import main
from sparsecc.cli.run_log import FILES
from sparsecc.errors import GoalError
from tests.cli_recorder import Recorder

pytest_plugins = ("tests.cli_fixtures",)

MODEL = Path(__file__).resolve().parents[1] / "models" / "digits_lstm.onnx"


def lines(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


def test_every_line_of_the_log_is_one_object(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    options = ["--ratio", "0.3", "--no-measure", "-o", str(tmp_path / "out"), "--log-json", "-v"]
    assert main(["compile", str(MODEL), *options]) == 0
    found = lines(capfd.readouterr().err)
    assert {"load", "choose", "prove", "verify"} <= {event.get("stage") for event in found}
    times = [datetime.fromisoformat(str(event["time"])) for event in found]
    assert times == sorted(times)
    assert {event["level"] for event in found} == {"info"}


def test_errors_are_objects_too(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad\x1b.onnx").write_bytes(b"\x80\x04.")
    assert main(["inspect", str(tmp_path / "bad\x1b.onnx"), "--log-json", "--debug"]) == 2
    text = capfd.readouterr().err
    assert "\x1b" not in text
    said, kept = lines(text)[-2:]
    assert said["level"] == "error"
    assert said["exit"] == 2
    assert "pickle" in str(said["message"])
    assert kept["level"] == "info"


def test_nothing_is_logged_unasked(api: Recorder, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "m.onnx"]) == 0
    assert capsys.readouterr().err == ""


def test_debug_keeps_what_a_report_needs_and_no_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    options = ["--ratio", "0.3", "--keep", "nothing*", "-o", str(tmp_path / "no" / "out")]
    assert main(["compile", str(MODEL), *options, "--no-measure", "--debug"]) == 2
    (folder,) = (tmp_path / "state" / "sparsecc" / "crashes").iterdir()
    assert str(folder) in capfd.readouterr().err
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
    assert folder.stat().st_mode & 0o077 == 0
    assert json.loads((folder / "recipe.json").read_text())["ratio"] == 0.3
    assert "onnxruntime" in json.loads((folder / "versions.json").read_text())
    assert "InputError" in (folder / "traceback.txt").read_text()
    assert sum(path.stat().st_size for path in folder.iterdir()) < 20_000


def test_the_traceback_is_that_of_the_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    (tmp_path / "bad.onnx").write_bytes(b"\x80\x04.")
    assert main(["inspect", str(tmp_path / "bad.onnx"), "--debug"]) == 2
    assert "open_model.py" in capfd.readouterr().err
    (text,) = (tmp_path / "state").rglob("traceback.txt")
    assert "open_model.py" in text.read_text()
    (log,) = (tmp_path / "state").rglob("log.jsonl")
    assert lines(log.read_text())[-1]["exit"] == 2


def test_without_debug_nothing_is_kept(
    api: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    api.error = GoalError("not reached")
    assert main(["verify", "out"]) == 1
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().err == "sparsecc: error: not reached\n"
