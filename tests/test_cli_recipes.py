"""Recipes: what they may say, and how the command line overrides them."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparsecc.cli import main
from sparsecc.system.plain_yaml import LARGEST
from tests.cli_recorder import Err, Recorder

pytest_plugins = ("tests.cli_fixtures",)

# Recipes ---------------------------------------------------------------------------------------------


def write(folder: Path, text: str | bytes) -> str:
    (folder / "c.npz").touch()
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
        "calib": str(tmp_path / "c.npz"),
        "keep": ("stem*",),
        "inputs": {"x": (1, 3), "y": (4,)},
        "seed": 0,
        "measure": False,
        "prune_io": ("*",),
    }


def test_command_line_overrides_the_recipe(api: Recorder, tmp_path: Path) -> None:
    options = ["--prune", "layers", "--keep", "head", "--seed", "7", "--calib", "other.npz", "--ratio", "0.6"]
    assert main(["compile", "m.onnx", "-q", *options, "--recipe", write(tmp_path, RECIPE)]) == 0
    wanted = {"prune": ("layers",), "keep": ("head",), "seed": 7, "calib": "other.npz", "ratio": 0.6}
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
        "keep": (),
        "measure": True,
        "only": (),
        "prune": ("channels",),
        "prune_io": (),
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
    *(
        (f"ratio: !!{tag}", "it has the tag")
        for tag in ("int ''", "bool x", "timestamp x", "float ''", "binary x")
    ),
    ("a: &a x\nkeep: *a", "aliases are not allowed"),
    ("inputs: {x: 3}", "must be a list of sizes"),
    ("inputs: {x: [1, -3]}", "must be a list of sizes"),
    ("keep: {a: b}", "--keep: {'a': 'b'} is no list of names"),
    ("keep: [[a]]", "--keep: [['a']] is no list of names"),
    ("seed: 2026-11-21", "is no whole number of at least 0"),
    ("eval: ./evil.py:score", "names code to run"),
    ("calib: py:os:system", "names code to run"),
    (
        "calib_general: a.py:f",
        "'calib_general' is 'a.py:f', which names code to run, or no file: a file may not; give --calib-general again",
    ),
    ("calib: a.py:f\nevaluate: b.py:g", "a file may not; give --calib and --evaluate again"),
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
