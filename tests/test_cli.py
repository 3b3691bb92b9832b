"""The command line from outside: help, options, errors, exit codes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

from sparsecc.cli import main
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
from tests.cli_recorder import HEAVY, ROOT, Err, Recorder, process

pytest_plugins = ("tests.cli_fixtures",)

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


@pytest.mark.parametrize("arguments", [[], ["devices"]])
def test_nothing_asked_shows_the_help(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert "\nCommands:\n" in capsys.readouterr().err


def test_help_of_a_command_shows_all_where_that_is_asked(capsys: pytest.CaptureFixture[str]) -> None:
    def shown(*words: str) -> str:
        assert main([*words]) == 0
        return capsys.readouterr().out

    assert shown("help", "compile", "--all") == shown("compile", "--help-all") != shown("help", "compile")
    assert shown("help", "cache", "--all") == shown("cache", "--help")
    assert main(["help", "compile", "--every"]) == 2
    assert "help takes a command and --all, not '--every'" in capsys.readouterr().err


def test_root_help_lists_the_commands_and_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-h"]) == 0
    text = capsys.readouterr().out
    assert all(f"  {name} " in text for name in COMMANDS)
    assert "70  a bug" in text
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
        "--keep a* --keep b --only c --prune heads,layers --prune-io y --sparsity 2:4 --quantize int8 "
        "--recover bias --calib c.npz --calib-general g.npz --working-memory 1GiB --evaluate m.py:f --input x:1x3 "
        "--seed 0 --device local --threads 2 --no-measure --deadline 2min --memory-limit 1GiB -o out --force "
        "--emit onnx --dry-run -q"
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
        "prune_io": ("y",),
        "sparsity": "2:4",
        "quantize": "int8",
        "recover": "bias",
        "calib": "c.npz",
        "calib_general": "g.npz",
        "working_memory": 1 << 30,
        "evaluate": "m.py:f",
        "inputs": {"x": (1, 3)},
        "seed": 0,
        "device": "local",
        "threads": 2,
        "measure": False,
        "deadline": 120.0,
        "memory_limit": 1 << 30,
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
    assert main(["inspect", "m.onnx", "--why", "w:0", "--prune-io", "y", "-q"]) == 0
    assert api.asked == {"arguments": ("m.onnx",), "why": "w:0", "prune_io": ("y",)}
    assert main(["verify", "out", "--model", "m.onnx", "-q"]) == 1
    assert api.asked == {"arguments": ("out",), "model": "m.onnx"}


OWN = {"recipe", "as_json", "no_sandbox", "quiet", "verbose", "html"}
"""Options that a command settles itself."""


@pytest.mark.parametrize("name", ["compile", "inspect", "profile", "compare", "search", "verify"])
def test_every_option_is_one_that_the_api_takes(name: str) -> None:
    import inspect

    from sparsecc import api
    from sparsecc.fleet import profile_fleet
    from sparsecc.search.api import search

    verb = search if name == "search" else getattr(api, name)
    taken = set(inspect.signature(verb).parameters)
    if name == "profile":
        taken |= set(inspect.signature(profile_fleet).parameters)
    command = root.get_command(click.Context(root), name)
    assert command is not None
    names = {param.name for param in command.params if param.expose_value}
    assert names - OWN - taken == set()


USAGE = [
    ("frobnicate", "no command 'frobnicate': commands are compile,"),
    ("compil", "no command 'compil': did you mean 'compile'?"),
    ("compile", "Missing argument 'MODEL'"),
    ("compile m --ratoi 1", "'--ratio'"),
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


def test_debug_shows_the_traceback(
    api: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    api.error = InputError("no such thing")
    assert main(["inspect", "m.onnx", "--debug"]) == 2
    text = capsys.readouterr().err
    assert text.startswith("Traceback")
    assert "\nsparsecc: error: no such thing\n" in text
