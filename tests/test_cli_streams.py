"""What goes to which stream; devices and the gate on the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sparsecc.cli import main
from tests.cli_recorder import ROOT, Err, Recorder, report

pytest_plugins = ("tests.cli_fixtures",)

# Streams ---------------------------------------------------------------------------------------------

LINES = {
    "compile": "compile m.onnx --ratio 0.5",
    "inspect": "inspect m.onnx",
    "profile": "profile m.onnx",
    "compare": "compare a.onnx b.onnx",
    "verify": "verify out",
    "doctor": "doctor",
}


@pytest.mark.parametrize("name", LINES)
def test_json_is_all_that_stdout_carries(
    api: Recorder, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    main([*LINES[name].split(), "--json"])
    captured = capsys.readouterr()
    printed = json.loads(captured.out)
    assert {key: printed[key] for key in report(name) if key != "command"} == {
        key: value for key, value in report(name).items() if key != "command"
    }
    assert captured.err == ""


@pytest.mark.parametrize("name", LINES)
def test_quiet_prints_nothing(api: Recorder, capsys: pytest.CaptureFixture[str], name: str) -> None:
    main([*LINES[name].split(), "--quiet"])
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("name", LINES)
def test_table_without_a_terminal_is_plain_text(
    api: Recorder, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    main(LINES[name].split())
    captured = capsys.readouterr()
    assert captured.err == ""
    assert "\x1b" not in captured.out
    assert len(captured.out.splitlines()) > 3


def test_html_goes_to_its_file(api: Recorder, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for name in ("inspect", "profile"):
        page = tmp_path / f"{name}.html"
        assert main([*LINES[name].split(), "--json", "--html", str(page)]) == 0
        captured = capsys.readouterr()
        json.loads(captured.out)
        assert captured.err == f"sparsecc: wrote {page}\n"
        assert page.read_text(encoding="utf-8").startswith("<!doctype html>")


def test_html_that_cannot_be_written_is_6(api: Recorder, err: Err, tmp_path: Path) -> None:
    code, message = err("inspect", "m.onnx", "--html", str(tmp_path / "no" / "such" / "folder.html"))
    assert code == 6
    assert "cannot write" in message


def test_a_reader_that_goes_away_is_no_error() -> None:
    writer = 'from sparsecc.cli.terminal import write_stdout as w; [w("x" * 9999) for _ in range(99)]'
    shell = f"{sys.executable} -c '{writer}'"
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {shell} | head -c 1"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "x", "")


def test_a_narrow_terminal_that_knows_only_ascii(api: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    monkeypatch.setenv("COLUMNS", "50")
    assert main(["compile", "m.onnx"]) == 0
    lines = raw.getvalue().decode("ascii").splitlines()
    assert max(len(line) for line in lines) <= 50
    assert "-51.3 %" in raw.getvalue().decode("ascii")
    assert "\\u" not in raw.getvalue().decode("ascii")


# Devices ---------------------------------------------------------------------------------------------


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    return tmp_path / "sparsecc" / "devices.yaml"


def test_a_device_is_kept_listed_and_found(
    api: Recorder, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["devices", "add", "board", "ssh://pi@192.0.2.7:2222"]) == 0
    assert main(["devices", "add", "phone", "adb:R58M123", "-q"]) == 0
    capsys.readouterr()
    assert main(["devices", "list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["devices"] == [
        {"name": "local", "address": "local"},
        {"name": "board", "address": "ssh://pi@192.0.2.7:2222"},
        {"name": "phone", "address": "adb:R58M123"},
    ]
    assert config.stat().st_mode & 0o077 == 0
    assert main(["profile", "m.onnx", "--device", "board", "-q"]) == 0
    assert api.asked["device"] == "ssh://pi@192.0.2.7:2222"
    assert main(["profile", "m.onnx", "--device", "ssh://me@here", "-q"]) == 0
    assert api.asked["device"] == "ssh://me@here"


def test_a_device_has_its_python_and_is_forgotten(
    api: Recorder, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["devices", "add", "board", "ssh://pi@here", "--python", "/opt/v/bin/python", "-q"]) == 0
    assert main(["profile", "m.onnx", "--device", "board", "-q"]) == 0
    assert api.asked["device"] == "ssh://pi@here?python=/opt/v/bin/python"
    assert main(["devices", "remove", "board"]) == 0
    assert capsys.readouterr().err.endswith(f"removed 'board' from {config}\n")
    assert main(["devices", "list", "--json"]) == 0
    assert [one["name"] for one in json.loads(capsys.readouterr().out)["devices"]] == ["local"]
    assert [path.name for path in config.parent.iterdir()] == [config.name]


BAD_DEVICES = [
    ("devices add board ssh://a@b --python a;b", "is no program: write ?python=/PATH"),
    ("devices add local ssh://a@b", "cannot name a device"),
    ("devices add -- -x ssh://a@b", "cannot name a device"),
    ("devices add board ssh://-oProxyCommand=x", "write local, ssh://user@host:port or adb:SERIAL"),
    ("devices add board", "Missing argument 'ADDRESS'"),
    ("profile m.onnx --device bord", "no device is called 'bord': known are local; add it"),
    ("devices test ftp://x", "write local, ssh://user@host:port or adb:SERIAL"),
]


@pytest.mark.parametrize(("line", "expected"), BAD_DEVICES, ids=[line for line, _ in BAD_DEVICES])
def test_bad_device_is_one_line(api: Recorder, config: Path, err: Err, line: str, expected: str) -> None:
    code, message = err(*line.split())
    assert code == 2
    assert expected in message
    assert not config.exists()


def test_a_name_that_is_not_kept_cannot_be_removed(config: Path, err: Err) -> None:
    code, message = err("devices", "remove", "bord")
    assert code == 2
    assert "no device is called 'bord': known are local" in message


@pytest.mark.parametrize("text", ["- a", "a: [b]", "a: !!python/name:os.system", "1: 2", "{"])
def test_a_broken_device_file_is_one_line(config: Path, err: Err, text: str) -> None:
    config.parent.mkdir()
    config.write_text(text)
    code, message = err("devices", "list")
    assert code == 2
    assert "correct or remove it" in message


def test_this_machine_answers(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["devices", "test", "local", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)["facts"]
    assert facts["system"].startswith(os.uname().sysname)


# The gate --------------------------------------------------------------------------------------------


def test_gate_needs_both_models_or_a_file(err: Err) -> None:
    assert err("gate", "m.onnx")[0] == 2
    assert "give CURRENT and --baseline" in err("gate", "m.onnx")[1]
    assert "leave out 'threads'" in err("gate", "--config", "g.yaml", "--threads", "2")[1]


def tiny_model(path: Path, repeats: int = 1) -> str:
    """A chain of matrix products; more of them are slower and have more weights."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weights = [numpy_helper.from_array(np.eye(64, dtype=np.float32), f"w{n}") for n in range(repeats)]
    names = ["x", *(f"h{n}" for n in range(1, repeats)), "y"]
    nodes = [helper.make_node("MatMul", [names[n], f"w{n}"], [names[n + 1]]) for n in range(repeats)]
    shape = [16, 64]
    first, last = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x", "y"))
    graph = helper.make_graph(nodes, "tiny", [first], [last], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return str(path)


def test_gate_finds_a_grown_model_without_a_clock(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, new = tiny_model(tmp_path / "old.onnx"), tiny_model(tmp_path / "new.onnx", repeats=3)
    files = [str(tmp_path / name) for name in ("gate.xml", "gate.md", "history.jsonl", "trend.html")]
    code = main(
        [
            "gate",
            new,
            "--baseline",
            old,
            "--junit",
            files[0],
            "--markdown",
            files[1],
            "--history",
            files[2],
            "--trend",
            files[3],
        ]
    )
    assert code == 1
    said = capsys.readouterr().out
    assert said.startswith("new.onnx: REGRESSION: multiply-accumulates")
    assert "bytes of model: 16,482 before, 49,330 now" in said
    assert 'failures="1"' in Path(files[0]).read_text()
    assert "**REGRESSION**" in Path(files[1]).read_text()
    assert json.loads(Path(files[2]).read_text())["verdict"] == "REGRESSION"


def test_gate_of_many_models_is_as_bad_as_its_worst(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_model(tmp_path / "old.onnx")
    tiny_model(tmp_path / "new.onnx", repeats=3)
    entry = "{name: %s, current: %s.onnx, baseline: %s.onnx, max_regression: 90%%, checks: [%s]}"
    lines = [entry % ("same", "old", "old", "size"), entry % ("grown", "new", "old", "size")]
    lines[1] = lines[1].replace("90%", "5%")
    (tmp_path / "gate.yaml").write_text("".join(f"- {line}\n" for line in lines))
    assert main(["gate", "--config", str(tmp_path / "gate.yaml"), "--json"]) == 1
    results = json.loads(capsys.readouterr().out)["results"]
    assert [(one["name"], one["verdict"]) for one in results] == [("same", "OK"), ("grown", "REGRESSION")]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_traceback_that_stderr_does_not_take_changes_no_exit_code() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "sparsecc", "--debug", "nope"], cwd=ROOT, stderr=full, check=False
        )
    assert done.returncode == 2
