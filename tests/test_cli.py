"""The command line from outside: help, options, recipes, errors, exit codes, what goes to which stream."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import click
import pytest

import sparsecc
from sparsecc.cli import main
from sparsecc.cli.recipe import LARGEST
from sparsecc.cli.root import COMMANDS, root
from sparsecc.errors import (
    GoalError,
    InconclusiveError,
    InputError,
    InternalError,
    SparseccError,
    SystemFailureError,
    UnavailableError,
    WorkerError,
)

GOLDEN = Path(__file__).parent / "golden" / "cli"
ROOT = Path(__file__).parent.parent
HEAVY = {"numpy", "onnx", "onnx_ir", "onnxruntime", "rich", "yaml", "jinja2", "torch", "scipy"}


def report(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))
    return loaded


class Recorder(ModuleType):
    """Stands where the API does and notes what was asked of it; the answers are the golden files."""

    def __init__(self) -> None:
        super().__init__("sparsecc.api")
        self.asked: dict[str, Any] = {}
        self.error: BaseException | None = None

    def _note(self, arguments: tuple[Any, ...], options: Mapping[str, Any]) -> None:
        self.asked = {"arguments": arguments, **options}
        self.asked.pop("on_event", None)
        if self.error is not None:
            raise self.error

    def compile(self, *arguments: Any, **options: Any) -> SimpleNamespace:
        self._note(arguments, options)
        return SimpleNamespace(bundle=Path("out"), report=report("compile"), plan={})

    def inspect(self, *arguments: Any, **options: Any) -> dict[str, Any]:
        self._note(arguments, options)
        return report("inspect")

    def profile(self, *arguments: Any, **options: Any) -> dict[str, Any]:
        self._note(arguments, options)
        return report("profile")

    def compare(self, *arguments: Any, **options: Any) -> dict[str, Any]:
        self._note(arguments, options)
        return report("compare")

    def verify(self, *arguments: Any, **options: Any) -> dict[str, Any]:
        self._note(arguments, options)
        return report("verify")

    def doctor(self) -> dict[str, Any]:
        return report("doctor")


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder()
    monkeypatch.setitem(sys.modules, "sparsecc.api", recorder)
    monkeypatch.setattr(sparsecc, "api", recorder, raising=False)
    return recorder


Err = Callable[..., tuple[int, str]]


@pytest.fixture
def err(capsys: pytest.CaptureFixture[str]) -> Err:
    """Runs the command line: its exit code and its one line on stderr."""

    def run(*arguments: str) -> tuple[int, str]:
        code = main(arguments)
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.count("\n") == 1
        return code, captured.err.strip()

    return run


def process(
    *arguments: str, env: Mapping[str, str] | None = None, **settings: Any
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sparsecc", *arguments]
    return subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        check=False,
        **settings,
    )


# Help ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [["--help"], *([name, "--help"] for name in COMMANDS)], ids=" ".join)
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    code = f"import sys; from sparsecc.cli import main; main({arguments!r}); sys.exit(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.startswith("Usage: sparsecc")
    assert HEAVY & set(done.stderr.split()) == set()


@pytest.mark.parametrize("name", COMMANDS)
def test_every_help_has_examples_and_the_shared_options(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([name, "--help"]) == 0
    text = capsys.readouterr().out
    assert len(re.findall(rf"^ +sparsecc {name}", text, re.MULTILINE)) >= 1
    if name != "devices":
        assert text.count(f"  sparsecc {name}") >= 2
        for option in ("--json", "--quiet", "--verbose", "--debug", "--help"):
            assert option in text


def test_root_help_lists_the_commands_and_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-h"]) == 0
    text = capsys.readouterr().out
    assert all(f"  {name} " in text for name in COMMANDS)
    assert "70 a bug" in text
    assert "_SPARSECC_COMPLETE=bash_source" in text


def test_version() -> None:
    assert re.fullmatch(r"sparsecc (\d+\.\d+\S*|unknown)\n", process("--version").stdout)


def test_shell_completion_knows_commands_and_targets() -> None:
    env = {"_SPARSECC_COMPLETE": "bash_complete", "COMP_WORDS": "sparsecc comp", "COMP_CWORD": "1"}
    assert process(env=env).stdout.split() == ["plain,compile", "plain,compare"]
    env |= {"COMP_WORDS": "sparsecc compile --target tensor", "COMP_CWORD": "3"}
    assert process(env=env).stdout.split() == ["plain,tensorrt", "plain,tensorrt-rtx"]


# Options ---------------------------------------------------------------------------------------------


def test_only_what_was_given_reaches_the_api(api: Recorder) -> None:
    assert main(["compile", "m.onnx", "-q"]) == 0
    assert api.asked == {"arguments": ("m.onnx",)}


def test_every_compile_option_reaches_the_api(api: Recorder) -> None:
    options = (
        "--target onnx --ratio 0 --metric params --max-drop 1% --criterion l1 --allocator uniform --align 8 "
        "--keep a* --keep b --only c --prune heads,layers --prune-io --sparsity 2:4 --quantize int8 "
        "--recover bias --calib c.npz --eval m.py:f --input x:1x3 --seed 0 --device local --threads 2 "
        "--no-measure --deadline 2min --memory-limit 1GiB -o out --force --emit onnx --dry-run -q"
    )
    assert main(["compile", "m.onnx", *options.split()]) == 0
    assert api.asked == {
        "arguments": ("m.onnx",),
        "target": "onnx",
        "ratio": 0.0,
        "metric": "params",
        "max_drop": 0.01,
        "criterion": "l1",
        "allocator": "uniform",
        "align": 8,
        "keep": ("a*", "b"),
        "only": ("c",),
        "prune": ("heads", "layers"),
        "prune_io": True,
        "sparsity": "2:4",
        "quantize": "int8",
        "recover": "bias",
        "calibration": "c.npz",
        "evaluate": "m.py:f",
        "inputs": {"x": (1, 3)},
        "seed": 0,
        "device": "local",
        "threads": 2,
        "measure": False,
        "deadline": 120.0,
        "memory": 1 << 30,
        "output": "out",
        "force": True,
        "emit": "onnx",
        "dry_run": True,
    }


@pytest.mark.parametrize(
    ("options", "expected"),
    [("--speedup 2x", {"speedup": 2.0}), ("--latency 5ms", {"latency": 5.0}), ("--fps 30", {"fps": 30.0})],
)
def test_budgets_reach_the_api(api: Recorder, options: str, expected: dict[str, float]) -> None:
    assert main(["compile", "m.onnx", "-q", *options.split()]) == 0
    assert api.asked == {"arguments": ("m.onnx",), **expected}


def test_other_commands_reach_the_api(api: Recorder) -> None:
    assert main(["profile", "m.onnx", "--layers", "--threads", "2", "--data", "d.npz", "-q"]) == 0
    assert api.asked == {"arguments": ("m.onnx",), "layers": True, "threads": 2, "data": "d.npz"}
    assert main(["compare", "a.onnx", "out", "--input", "x:1x3", "-q"]) == 0
    assert api.asked == {"arguments": ("a.onnx", "out"), "inputs": {"x": (1, 3)}}
    assert main(["inspect", "m.onnx", "--why", "w:0", "--prune-io", "-q"]) == 0
    assert api.asked == {"arguments": ("m.onnx",), "why": "w:0", "prune_io": True}
    assert main(["verify", "out", "--model", "m.onnx", "-q"]) == 1
    assert api.asked == {"arguments": ("out",), "model": "m.onnx"}


OWN = {"recipe", "no_measure", "as_json", "quiet", "verbose", "html"}
"""Options that a command settles itself."""


@pytest.mark.parametrize("name", ["compile", "inspect", "profile", "compare", "verify"])
def test_every_option_is_one_that_the_api_takes(name: str) -> None:
    import dataclasses
    import inspect

    from sparsecc import api
    from sparsecc.options import CompileOptions

    taken = set(inspect.signature(getattr(api, name)).parameters)
    if name == "compile":
        taken |= {field.name for field in dataclasses.fields(CompileOptions)}
    command = root.get_command(click.Context(root), name)
    assert command is not None
    names = {param.name for param in command.params if param.expose_value}
    assert names - OWN - taken == set()


USAGE = [
    ("frobnicate", "no command 'frobnicate': commands are compile,"),
    ("compil", "no command 'compil': did you mean 'compile'?"),
    ("compile", "Missing argument 'MODEL'"),
    ("compile m --ratoi 1", "Did you mean '--ratio'"),
    ("compile m --ratio 1.5", "Invalid value for '--ratio': 1.5 is outside [0, 1)"),
    ("compile m --metric mac", "unknown metric 'mac': did you mean 'macs'?"),
    ("compile m --target tensort", "unknown target 'tensort': did you mean 'tensorrt'?"),
    ("compile m --quantize int7", "unknown type 'int7': did you mean 'int8'?"),
    ("compile m --prune head", "unknown kind 'head': did you mean 'heads'?"),
    ("compile m --ratio 0.5 --speedup 2", "--ratio and --speedup are different budgets"),
    ("compile m --max-drop 0.01", "--max-drop needs an accuracy to watch: give --eval"),
    ("compile m --input x:1xq", "'x:1xq': '1xq' is not whole numbers above zero"),
    ("compile m --threads 0", "--threads"),
    ("compile m extra", "unexpected extra argument"),
    ("inspect m --html", "requires an argument"),
    ("\x1b[31m", "no command '\\x1b[31m'"),
]


@pytest.mark.parametrize(("line", "expected"), USAGE, ids=[line for line, _ in USAGE])
def test_usage_error_is_one_line_and_exit_code_2(api: Recorder, err: Err, line: str, expected: str) -> None:
    code, message = err(*line.split(" "))
    assert code == 2
    assert message.startswith("sparsecc: error: ")
    assert expected in message
    assert api.asked == {}


# Recipes ---------------------------------------------------------------------------------------------


def write(folder: Path, text: str | bytes) -> str:
    path = folder / "recipe.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return str(path)


RECIPE = """
schema: sparsecc.recipe/1
ratio: 0.3
prune: [channels, heads]
calib: c.npz
keep: stem*
inputs: ["x:1x3", "y:4"]
max-drop: null
seed: 0
measure: false
prune_io: true
"""


def test_recipe_gives_the_options(api: Recorder, tmp_path: Path) -> None:
    assert main(["compile", "m.onnx", "-q", "--recipe", write(tmp_path, RECIPE)]) == 0
    assert api.asked == {
        "arguments": ("m.onnx",),
        "ratio": 0.3,
        "prune": ("channels", "heads"),
        "calibration": "c.npz",
        "keep": ("stem*",),
        "inputs": {"x": (1, 3), "y": (4,)},
        "seed": 0,
        "measure": False,
        "prune_io": True,
    }


def test_command_line_overrides_the_recipe(api: Recorder, tmp_path: Path) -> None:
    options = ["--prune", "layers", "--keep", "head", "--seed", "7", "--calib", "other.npz", "--ratio", "0.6"]
    assert main(["compile", "m.onnx", "-q", *options, "--recipe", write(tmp_path, RECIPE)]) == 0
    wanted = {"prune": ("layers",), "keep": ("head",), "seed": 7, "calibration": "other.npz", "ratio": 0.6}
    assert {name: api.asked[name] for name in wanted} == wanted


def test_budget_on_the_command_line_replaces_that_of_the_recipe(api: Recorder, tmp_path: Path) -> None:
    assert main(["compile", "m.onnx", "-q", "--speedup", "2", "--recipe", write(tmp_path, RECIPE)]) == 0
    assert api.asked["speedup"] == 2.0
    assert "ratio" not in api.asked


RESOLVED = """
align: auto
allocator: auto
inputs: {x: [1, 3], "y:0": [[1, 4], [2, 4], [8, 4]]}
keep: []
latency: 5.0
max_drop: 0.01
evaluate: score.py:accuracy
measure: true
only: []
prune: [channels]
prune_io: false
threads: 1
"""


def test_recipe_of_a_bundle_runs_again_when_its_code_is_named_again(
    api: Recorder, err: Err, tmp_path: Path
) -> None:
    recipe = write(tmp_path, RESOLVED)
    assert "names code to run" in err("compile", "m.onnx", "--recipe", recipe)[1]
    assert main(["compile", "m.onnx", "-q", "--recipe", recipe, "--eval", "score.py:accuracy"]) == 0
    assert api.asked == {
        "arguments": ("m.onnx",),
        "align": "auto",
        "allocator": "auto",
        "inputs": {"x": (1, 3), "y:0": ((1, 4), (2, 4), (8, 4))},
        "latency": 5.0,
        "max_drop": 0.01,
        "evaluate": "score.py:accuracy",
        "prune": ("channels",),
        "threads": 1,
    }


BAD_RECIPES: list[tuple[str | bytes, str]] = [
    ("ratoi: 0.5", "unknown option 'ratoi': did you mean 'ratio'?"),
    ("output: /etc", "unknown option 'output'"),
    ("force: true", "unknown option 'force'"),
    ("ratio: 2", "2 is outside [0, 1)"),
    ("ratio: 0.5\nspeedup: 2", "different budgets"),
    ("- ratio", "is no recipe"),
    ("", "is no recipe"),
    ("ratio: [", "is not plain YAML"),
    ("ratio: !!python/object/apply:os.system [id]", "is not plain YAML"),
    ("ratio: 0.5\nkeep: !foo x", "is not plain YAML"),
    ("a: &a x\nkeep: *a", "aliases are not allowed"),
    ("inputs: {x: 3}", "must be a list of sizes"),
    ("inputs: {x: [1, -3]}", "whole numbers above zero"),
    ("keep: {a: b}", "'keep' must be a value or a list"),
    ("keep: [[a]]", "'keep' must be a value or a list"),
    ("seed: 2026-11-21", "'seed' must be a value or a list"),
    ("eval: ./evil.py:score", "names code to run"),
    ("calib: py:os:system", "names code to run"),
    ("schema: sparsecc.recipe/9", "not sparsecc.recipe/1"),
    (b"\xff\xfe\x00", "is not UTF-8"),
    ("[" * 60_000, "nested too deeply"),
    (b"# " + b"x" * LARGEST, "too large for a recipe"),
    ("ratio: 0.5\n\x07", "is not plain YAML"),
]


@pytest.mark.parametrize(("text", "expected"), BAD_RECIPES, ids=range(len(BAD_RECIPES)))
def test_bad_recipe_is_one_line(
    api: Recorder, err: Err, tmp_path: Path, text: str | bytes, expected: str
) -> None:
    code, message = err("compile", "m.onnx", "--recipe", write(tmp_path, text))
    assert code == 2
    assert expected in message
    assert api.asked == {}


def test_missing_recipe(api: Recorder, err: Err, tmp_path: Path) -> None:
    code, message = err("compile", "m.onnx", "--recipe", str(tmp_path / "none.yaml"))
    assert (code, "No such file" in message) == (2, True)


# Errors ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (GoalError("x"), 1),
        (InputError("x"), 2),
        (UnavailableError("x"), 3),
        (InconclusiveError("x"), 4),
        (WorkerError("x"), 5),
        (SystemFailureError("x"), 6),
        (InternalError("x"), 70),
    ],
    ids=lambda value: type(value).__name__,
)
def test_each_error_has_its_exit_code(api: Recorder, err: Err, error: SparseccError, code: int) -> None:
    api.error = error
    assert err("compile", "m.onnx", "--json") == (code, "sparsecc: error: x")


def test_an_error_stays_on_one_line(api: Recorder, err: Err) -> None:
    api.error = InputError("bad \x1b[2J name\nand more \u202e")
    assert err("inspect", "m.onnx") == (2, "sparsecc: error: bad \\x1b[2J name and more \\u202e")


def test_interrupt_is_130(api: Recorder, capsys: pytest.CaptureFixture[str]) -> None:
    api.error = KeyboardInterrupt()
    assert main(["inspect", "m.onnx"]) == 130
    assert capsys.readouterr().err.strip() == "sparsecc: interrupted; nothing was written"


def test_a_bug_is_70_and_leaves_a_private_report(
    api: Recorder, err: Err, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    api.error = ZeroDivisionError("at the worst moment")
    code, message = err("inspect", "m.onnx")
    assert code == 70
    found = re.search(r"please report it with (\S+)$", message)
    assert found is not None
    written = Path(found[1])
    assert "ZeroDivisionError: at the worst moment" in written.read_text()
    assert "Traceback" in written.read_text()
    assert written.stat().st_mode & 0o077 == 0


def test_debug_shows_the_traceback(api: Recorder, capsys: pytest.CaptureFixture[str]) -> None:
    api.error = InputError("no such thing")
    assert main(["inspect", "m.onnx", "--debug"]) == 2
    text = capsys.readouterr().err
    assert text.startswith("Traceback")
    assert text.endswith("sparsecc: error: no such thing\n")


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


BAD_DEVICES = [
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
    files = [str(tmp_path / name) for name in ("gate.xml", "gate.md", "history.jsonl")]
    code = main(
        ["gate", new, "--baseline", old, "--junit", files[0], "--markdown", files[1], "--history", files[2]]
    )
    assert code == 1
    assert capsys.readouterr().out.startswith("new.onnx: REGRESSION: bytes of model")
    assert 'failures="1"' in Path(files[0]).read_text()
    assert "**REGRESSION**" in Path(files[1]).read_text()
    assert json.loads(Path(files[2]).read_text())["verdict"] == "REGRESSION"


def test_gate_of_many_models_is_as_bad_as_its_worst(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_model(tmp_path / "old.onnx")
    tiny_model(tmp_path / "new.onnx", repeats=3)
    entry = "{name: %s, current: %s.onnx, baseline: %s.onnx, max_regression: 900%%, checks: [%s]}"
    lines = [entry % ("same", "old", "old", "size"), entry % ("grown", "new", "old", "size")]
    lines[1] = lines[1].replace("900%", "5%")
    (tmp_path / "gate.yaml").write_text("".join(f"- {line}\n" for line in lines))
    assert main(["gate", "--config", str(tmp_path / "gate.yaml"), "--json"]) == 1
    results = json.loads(capsys.readouterr().out)["results"]
    assert [(one["name"], one["verdict"]) for one in results] == [("same", "OK"), ("grown", "REGRESSION")]
