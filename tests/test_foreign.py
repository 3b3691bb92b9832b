"""Bundles, recipes and build files from strangers are data: nothing in them runs, and each is refused in a line.

Every trap is real: a Python file, its byte code, a shared library with a constructor. One that springs leaves a
canary, and no test may find one.
"""

from __future__ import annotations

import importlib.machinery
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import sparsecc
from sparsecc import worker
from sparsecc.bundle.foreign import file_rows, own_options
from sparsecc.errors import InputError
from sparsecc.escaping import quoted
from sparsecc.options import CompileOptions
from sparsecc.options.builder_keys import BUILD_KEYS, build_settings
from sparsecc.targets import TARGETS
from sparsecc.tasks.outside import beyond_sandbox
from tests.foreign_files import MODEL, errors_of, seal

pytest_plugins = ("tests.foreign_fixtures",)


def test_the_traps_do_spring(traps: Path) -> None:
    """Where the user loads them, they leave the canary that the other tests look for."""
    for name in ("x.py", "x.pyc"):
        subprocess.run([sys.executable, str(traps / name)], check=True)
        (traps / "canary").unlink()
    if (traps / "x.so").exists():
        code = f"import ctypes; ctypes.CDLL({str(traps / 'x.so')!r})"
        subprocess.run([sys.executable, "-c", code], check=True)
        (traps / "canary").unlink()


def test_what_a_file_may_say_is_in_the_table() -> None:
    never = {name for name, row in file_rows().items() if row.never_in_a_file}
    assert never == {"evaluate", "custom_ops", "device", "deadline", "memory_limit"}
    assert not {"output", "force", "dry_run"} & set(file_rows())
    assert not {"plugins", "timing_cache", "device", "emit"} & BUILD_KEYS


def test_what_a_compile_records_may_be_set_again() -> None:
    recipe = CompileOptions.of(
        {
            "ratio": 0.5,
            "sparsity": "block4x4@0.5",
            "recover_budget": "steps:2000",
            "keep": ["/layer.*/Conv"],
            "align": 8,
            "quantize": "int8",
            "quantize_options": {"exclude": "/a/b,/c", "method": "mse", "keep_io": "true"},
            "inputs": {"x": [[1, 3], [2, 3], [4, 3]]},
            "build": {"workspace": "4GiB", "compute_capabilities": "8.6,12.0"},
            "calib": "synthetic",
        }
    ).to_recipe()
    taken, left = own_options(recipe, Path())
    assert left == []
    assert CompileOptions.of(taken) == CompileOptions.of(recipe)


OUTSIDE = ["../c.npz", "/etc/passwd", "a/../../c.npz", "..", ".", "", "c\\..\\d.npz", "c.npz\0", "none.npz"]
CODE = [
    "x.py:f",
    "x.pyc:f",
    "x.abi3.so:f",
    "x.so:f",
    "py:x:f",
    "py:os:system",
    "./x.py:f",
    "/tmp/x.py:f",
    "x.py:",
]


@pytest.mark.parametrize("value", [*OUTSIDE, *CODE, 3, ["x.py:f"], True])
@pytest.mark.parametrize("name", ["calib", "calib_general", "evaluate", "custom_ops"])
def test_no_file_names_code_or_a_path_outside(name: str, value: Any, tmp_path: Path) -> None:
    (tmp_path / "x.py").touch()
    (tmp_path.parent / "c.npz").touch()
    taken, left = own_options({name: value}, tmp_path)
    assert taken == {}
    (line,) = (one.line("recipe.yaml") for one in left)
    assert "\n" not in line
    assert line.startswith(f"recipe.yaml: '{name}' is ")
    assert "--calib" in line or "--eval" in line or "--custom-ops" in line


def test_samples_beside_a_file_are_taken_unless_links_lead_out(tmp_path: Path) -> None:
    folder, outside = tmp_path / "recipe", tmp_path / "private.npz"
    (folder / "samples").mkdir(parents=True)
    outside.touch()
    (folder / "c.npz").touch()
    (folder / "samples" / "1.npy").touch()
    for value in ("c.npz", "samples", "./samples/1.npy"):
        assert own_options({"calib": value}, folder) == ({"calib": str(folder / value)}, [])
    (folder / "link.npz").symlink_to(outside)
    (folder / "more").symlink_to(folder / "samples")
    os.link(outside, folder / "hard.npz")
    (folder / "words.txt").touch()
    (folder / "tokenizer.json").symlink_to(outside)
    os.mkfifo(folder / "pipe.npz")
    for value in ("link.npz", "more", "more/1.npy", "hard.npz", "words.txt", "pipe.npz"):
        assert own_options({"calib": value}, folder)[0] == {}, value
    (folder / "samples" / "2.npy").symlink_to(outside)
    assert own_options({"calib": "samples"}, folder)[0] == {}


@pytest.mark.parametrize(
    ("name", "value"),
    [("ratio", "x.py:f"), ("criterion", "../x.py"), ("keep", {"a": 1}), ("measure", "no"), ("target", ["a"])],
)
def test_values_of_another_kind_are_refused(name: str, value: Any) -> None:
    with pytest.raises(InputError, match=rf"--(no-)?{name}: "):
        own_options({name: value}, Path())


@pytest.mark.parametrize("name", [*TARGETS, "trt"])
def test_no_file_names_a_target_that_leaves_the_sandbox(name: str) -> None:
    taken, left = own_options({"target": name}, Path())
    assert bool(left) == bool(beyond_sandbox({"target": "tensorrt" if name == "trt" else name}))
    assert bool(taken) != bool(left)


def test_only_the_users_own_command_leaves_the_sandbox(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The report says tensorrt, too: nothing in the bundle counts."""
    report = json.loads((bundle / "report.json").read_text())
    (bundle / "report.json").write_text(json.dumps({**report, "target": {"name": "tensorrt"}}))
    recipe = recipe_with(bundle, target="tensorrt", emit="onnx")
    run, sandboxes = worker.run, []

    def observed(*arguments: Any, **options: Any) -> Any:
        sandboxes.append(options["write"])
        return run(*arguments, **options)

    monkeypatch.setattr(worker, "run", observed)
    compiled = ["compile", MODEL, "--recipe", recipe, "-o", tmp_path / "new", "--no-measure"]
    reproduced = ["verify", bundle, "--model", MODEL, "--reproduce"]
    for command in (compiled, reproduced):
        code, lines = errors_of(capsys, *command)
        assert (code, len(lines)) == (2, 1), lines
        assert "'target' is 'tensorrt', which talks to the drivers of a GPU" in lines[0]
        assert "give --target again" in lines[0]
    assert sandboxes == [()]  # of verify; the compile did not get so far
    assert errors_of(capsys, *compiled, "--target", "tensorrt")[0] == 0
    errors_of(capsys, *reproduced, "--target", "tensorrt")
    assert sandboxes[1:] == [None, None]


HOSTILE_BUILDS = {
    "plugins": ".",
    "timing_cache": "x.so",
    "device": "ssh://evil",
    "emit": "onnx",
    "nonsense": 1,
}


def test_builders_get_their_whitelist(tmp_path: Path) -> None:
    taken, left = build_settings({**HOSTILE_BUILDS, "workspace": 1})
    assert taken == {"workspace": 1}
    assert [one.option for one in left] == [f"build {key}" for key in HOSTILE_BUILDS]


def recipe_with(bundle: Path, **options: Any) -> Path:
    path = bundle / "recipe.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **options}))
    seal(bundle)
    return path


SPRUNG = [
    ("evaluate", "x.py:f"),
    ("evaluate", "x.pyc:f"),
    ("calib", f"x{importlib.machinery.EXTENSION_SUFFIXES[0]}:f"),
    ("calib", "x.abi3.so:f"),
    ("calib_general", "py:x:f"),
    ("custom_ops", "x.so"),
    ("custom_ops", ["x.so"]),
    ("calib", "../samples.npz"),
]


@pytest.mark.parametrize(("option", "value"), SPRUNG)
def test_a_recipe_runs_nothing_and_reads_nothing_outside(
    option: str,
    value: object,
    bundle: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = recipe_with(bundle, **{option: value})
    for folder in (bundle, tmp_path):
        monkeypatch.chdir(folder)
        code, lines = errors_of(capsys, "compile", MODEL, "--recipe", recipe, "-o", tmp_path / "new")
        assert (code, len(lines)) == (2, 1), lines
        assert f"'{option}' is {quoted(str(value), 60)}" in lines[0]
        assert not (tmp_path / "new").exists()
    monkeypatch.chdir(bundle)
    code, lines = errors_of(capsys, "verify", bundle, "--model", MODEL, "--reproduce")
    if option == "evaluate":
        assert (
            code == 1
        )  # a metric leaves no trace in what is compared, so it was not needed; the traps differ
        assert "came out different" in lines[0]
    else:
        assert (code, len(lines)) == (2, 1), lines


def test_what_is_left_out_is_said_and_the_rest_holds(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build = {"plugins": str(bundle), "timing_cache": str(bundle / "x.so"), "level": "basic"}
    recipe = recipe_with(bundle, device="ssh://nobody.invalid", build=build, deadline="1s")
    code, lines = errors_of(
        capsys, "compile", MODEL, "--recipe", recipe, "-o", tmp_path / "new", "--no-measure"
    )
    assert code == 0, lines
    said = [
        "'device' is 'ssh://nobody.invalid'",
        "'build plugins'",
        "'build timing_cache'",
        "'deadline' is '1s'",
    ]
    assert all(any(one in line for line in lines) for one in said), lines
    made = yaml.safe_load((tmp_path / "new" / "recipe.yaml").read_text())
    assert (made["device"], made["build"]) == ("local", {"level": "basic"})
    assert made["ratio"] == 0.3


def test_bundles_made_with_functions_are_reproduced_by_giving_them_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = "import numpy as np\ndef batches():\n    yield from np.random.default_rng(0).random((4, 1, 1, 16, 16), 'f')"
    own = tmp_path / "own.py"
    own.write_text(code + "\ndef score(run):\n    return 1.0\n")
    spec, score, out = f"{own}:batches", f"{own}:score", tmp_path / "out"
    sparsecc.compile(
        MODEL, ratio=0.3, criterion="wanda", calib=spec, evaluate=score, measure=False, output=out
    )
    code_, lines = errors_of(capsys, "verify", out, "--model", MODEL, "--reproduce")
    assert (code_, len(lines)) == (2, 1)
    assert "give --calib again" in lines[0]
    given = ["--calib", spec, "--eval", score]
    assert errors_of(capsys, "verify", out, "--model", MODEL, "--reproduce", *given) == (0, [])
    assert errors_of(capsys, "verify", out, "--model", MODEL, *given)[0] == 2
