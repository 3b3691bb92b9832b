"""The table of options: whatever it says holds on the command line, in Python, in recipes and in the documents.

A row that is added is checked by all of these, with nothing to add here.
"""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import mypy.api
import pytest
import yaml

import sparsecc
from sparsecc.bundle.foreign import read_recipe
from sparsecc.cli import main
from sparsecc.cli.command import Command
from sparsecc.cli.options import sections
from sparsecc.cli.root import root
from sparsecc.errors import InputError
from sparsecc.options import (
    CompareCall,
    CompileCall,
    CompileOptions,
    InspectCall,
    ProfileCall,
    SearchCall,
    rows_of,
)
from sparsecc.options.page import page
from sparsecc.options.renamed import old_flags, renamed
from sparsecc.options.row import FLAG, By, Row, choice, option
from sparsecc.options.table import DATA, Options
from tests.cli_recorder import Recorder

pytest_plugins = ("tests.cli_fixtures",)

ROOT = Path(__file__).resolve().parents[1]
ROWS = list(rows_of(CompileCall).values())
IDS = [row.name for row in ROWS]
TEXTS = {
    "SHARE": "50%",
    "TIMES": "2x",
    "TIME": "5ms",
    "RATE": "30",
    "DB": "20dB",
    "SIZE": "1GiB",
    "auto|N": "8",
    "N": "3",
    "NAME:SHAPE": "x:1x3|2x3|4x3",
    "KEY=VALUE": "workspace=4GiB",
    "PATTERN=SHARE": "layer4.*=0.6",
    "PATTERN=N|SHARE": "layer4.*=16",
    "PATTERN=SLOTS": "layer4.*=0-3,9",
    "KINDS": "heads",
    "LEVERS": "types",
    "local|NAME|ssh://USER@HOST|adb:SERIAL": "ssh://host",
}
"""What a value of a kind looks like, by its metavar; a word for all others."""


def text_of(row: Row) -> str:
    return next(iter(row.kind.names)) if row.kind.names else TEXTS.get(row.kind.metavar, "a")


NEEDED = {
    "max_drop": {"evaluate": "m.py:f"},
    "min_quality": {"calib": "a"},
    "min_agreement": {"calib": "a"},
}
"""What must be given beside an option."""


def words(row: Row) -> list[str]:
    needed = [word for name, value in NEEDED.get(row.name, {}).items() for word in (f"--{name}", value)]
    return [row.flag, *([] if row.kind is FLAG else [text_of(row)]), *needed]


def value_of(row: Row) -> Any:
    if row.kind is FLAG:
        return not row.default
    return row.kind.check([text_of(row)]) if row.kind.repeated else row.kind.read(text_of(row))


def command(name: str) -> Command:
    found = root.get_command(click.Context(root), name)
    assert isinstance(found, Command)
    return found


# Every row -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", ROWS, ids=IDS)
def test_a_row_is_an_option_of_the_command_line(row: Row, api: Recorder) -> None:
    assert main(["compile", "m.onnx", "-q", *words(row)]) == 0
    assert api.asked[row.name] == value_of(row)


@pytest.mark.parametrize("row", ROWS, ids=IDS)
def test_a_row_is_an_argument_in_python(row: Row) -> None:
    found = inspect.signature(sparsecc.compile).parameters[row.name]
    assert found.kind is inspect.Parameter.KEYWORD_ONLY
    if not isinstance(row.default, dict):
        assert found.default == row.default
    needed = NEEDED.get(row.name, {})
    if row.kind is FLAG:
        assert getattr(CompileCall.of({row.name: not row.default}), row.name) is not row.default
        with pytest.raises(InputError, match=f"{row.flag}: 3 is neither"):
            CompileCall.of({row.name: 3})
    else:
        with pytest.raises(InputError, match=f"{row.flag}: "):
            CompileCall.of({row.name: object(), **needed})


@pytest.mark.parametrize("row", ROWS, ids=IDS)
def test_a_row_is_a_key_of_recipes_or_is_refused_there(row: Row, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    if By.RECIPE not in row.by:
        path.write_text(f"{row.name}: true")
        with pytest.raises(InputError, match=f"unknown option '{row.name}'"):
            read_recipe(str(path))
        return
    value = "synthetic" if row.names_code and not row.never_in_a_file else value_of(row)
    recipe = {row.name: value, **NEEDED.get(row.name, {})}
    made = CompileOptions.of(recipe).to_recipe() if row.name in rows_of(CompileOptions) else recipe
    path.write_text(yaml.safe_dump(made))
    taken, left, told = read_recipe(str(path))
    assert told == []
    if row.never_in_a_file:
        assert row.name in [one.option for one in left]
    else:
        assert taken[row.name] == getattr(CompileOptions.of(recipe), row.name)


@pytest.mark.parametrize("row", ROWS, ids=IDS)
def test_a_row_has_its_help(row: Row, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compile", "--help-all"]) == 0
    assert re.search(rf"^  .*{row.flag}\b", capsys.readouterr().out, re.MULTILINE)
    assert main(["compile", "--help"]) == 0
    short = re.search(rf"^  (-\w, )?{row.flag}\b", capsys.readouterr().out, re.MULTILINE)
    assert bool(short) == row.is_common


def test_a_row_added_to_a_table_is_an_option_everywhere() -> None:
    @dataclass(frozen=True, kw_only=True)
    class More(CompileCall):
        colour: str = option("red", choice("colour", ("red", "green")), "Its colour.", DATA)

    made = Command(
        "more", lambda terminal, given: None, about="", examples=(), sections=sections(rows_of(More).values())
    )
    parsed = made.make_context("more", ["--colour", "GREEN"])
    assert parsed.params["colour"] == "green"
    assert "[default: red]" in next(one for one in made.params if one.name == "colour").to_info_dict()["help"]
    assert inspect.signature(More).parameters["colour"].default == "red"
    assert More.of({"colour": "green"}).colour == "green"
    with pytest.raises(InputError, match="--colour: unknown colour 'blue'"):
        More(colour="blue")
    with pytest.raises(InputError, match="unknown option 'color': did you mean 'colour'"):
        More.of({"color": "red"})


def test_the_page_of_options_is_current() -> None:
    assert (ROOT / "docs" / "options.md").read_text() == page(), "make options"


def test_verify_has_the_defaults_of_the_table() -> None:
    rows = rows_of(CompileCall)
    for name, found in inspect.signature(sparsecc.verify).parameters.items():
        if name in rows and name != "target" and not isinstance(rows[name].default, dict):
            assert found.default == rows[name].default, name


@pytest.mark.parametrize(
    ("verb", "table"),
    [("inspect", InspectCall), ("profile", ProfileCall), ("compare", CompareCall)],
)
def test_other_verbs_follow_from_their_tables(verb: str, table: type[Options]) -> None:
    rows, parameters = rows_of(table), inspect.signature(getattr(sparsecc, verb)).parameters
    assert {name for name, one in parameters.items() if one.kind is one.KEYWORD_ONLY} == {*rows, "on_event"}
    assert {param.name for param in command(verb).params} >= set(rows)
    common = rows_of(CompileCall)
    for name in {"inputs", "target", "keep", "threads"} & set(rows):
        assert rows[name] == common[name]
    arguments = ["m.onnx"] * (2 if verb == "compare" else 1)
    with pytest.raises(InputError, match="unknown option 'inptus': did you mean 'inputs'"):
        getattr(sparsecc, verb)(*arguments, inptus={})


def test_short_help_shows_what_most_need() -> None:
    assert sum(row.is_common for row in ROWS) == 16  # and --recipe, which is no row
    names = {row.name for row in ROWS if row.is_common}
    assert names >= {"target", "ratio", "speedup", "calib", "evaluate", "quantize", "output"}


def test_a_search_takes_what_its_points_do_not_set() -> None:
    names = {param.name for param in command("search").params}
    rows = rows_of(SearchCall)
    assert names >= set(rows) - {row.tries for row in rows.values()} - {
        r.name for r in ROWS if r.alone or r.is_goal
    }
    assert not names & ({row.tries for row in rows.values() if row.tries} | {"speedup", "max_drop"})


# Values ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("--ratio 50%", {"ratio": 0.5}),
        ("--max-drop 1% --eval m.py:f", {"max_drop": 0.01, "evaluate": "m.py:f"}),
        ("--min-quality 20dB --calib a", {"min_quality": 20, "calib": "a"}),
        ("--quantize INT8", {"quantize": "int8"}),
        ("--target ort", {"target": "onnxruntime"}),
        ("--target TRT", {"target": "tensorrt"}),
        ("--tokens 0.5", {"tokens": 0.5}),
    ],
)
def test_values_are_read_as_people_write_them(api: Recorder, line: str, expected: dict[str, Any]) -> None:
    assert main(["compile", "m.onnx", "-q", *line.split()]) == 0
    assert api.asked == {"arguments": ("m.onnx",), **expected}
    for name, value in zip(line.split()[::2], line.split()[1::2], strict=True):
        field = {"eval": "evaluate"}.get(name.strip("-"), name.strip("-").replace("-", "_"))
        needed = NEEDED.get(field, {})
        assert getattr(CompileOptions.of({field: value, **needed}), field) == expected[field]


USER = """
from pathlib import Path
import sparsecc

made = sparsecc.compile("m.onnx", ratio=0.5, calib=Path("c.npz"), inputs={"x": (1, 3)}, keep=["a"], on_event=print)
reveal_type(made)
sparsecc.compile("m.onnx", raito=3)
sparsecc.compile("m.onnx", ratio="half")
sparsecc.compile("m.onnx", target=None)
sparsecc.compile("m.onnx", quantize_options={"block": 64})
sparsecc.search("m.onnx", ratios=(0.3, 0.5), jobs=2, threads=2)
sparsecc.search("m.onnx", jbos=2)
sparsecc.search("m.onnx", rounds="one")
sparsecc.inspect("m.onnx", kepe=["a"])
sparsecc.inspect("m.onnx", keep=["a"], why="a:0")
sparsecc.profile("m.onnx", threads="two")
sparsecc.profile("m.onnx", layers=True, data=iter([1]))
sparsecc.compare("m.onnx", "n.onnx", thraeds=1)
sparsecc.compare("m.onnx", threads=1)
sparsecc.compare("m.onnx", "n.onnx", inputs={"x": (1, 3)}, threads=1)
"""


def test_mypy_refuses_what_is_no_option(tmp_path: Path) -> None:
    """Only what a signature is made of is read: all of sparsecc takes minutes."""
    user = tmp_path / "user.py"
    user.write_text(USER)
    read = [
        ROOT / "sparsecc" / name for name in ("__init__.py", "api.py", "report/result.py", "search/api.py")
    ]
    read += sorted((ROOT / "sparsecc" / "options").glob("*.py"))
    flags = ["--strict", "--follow-imports=skip", "--config-file=", "--no-error-summary"]
    flags += [f"--cache-dir={tmp_path / 'cache'}", "--explicit-package-bases", "--allow-untyped-decorators"]
    told, _, _ = mypy.api.run([*flags, "--hide-error-context", *map(str, read), str(user)])
    lines = [line for line in told.splitlines() if "user.py" in line]
    errors = {int(line.split(":")[1]): line for line in lines if " error: " in line}
    assert set(errors) == {7, 8, 9, 10, 12, 13, 14, 16, 18, 19}, told
    assert 'Unexpected keyword argument "raito" for "compile"; did you mean "ratio"?' in errors[7]
    assert '"ratio" to "compile" has incompatible type "str"; expected "float | None"' in errors[8]
    assert 'Unexpected keyword argument "jbos" for "search"' in errors[12]
    assert any("CompileResult" in line for line in lines if " note: Revealed" in line)


# Old names -------------------------------------------------------------------------------------------


def test_old_names_work_in_python_with_a_warning(tmp_path: Path) -> None:
    old: dict[str, Any] = {"calibration": "synthetic", "memory": 8 << 30}
    with pytest.warns(DeprecationWarning, match="is called (calib|memory_limit) now") as caught:
        made = sparsecc.compile(ROOT / "models" / "digits_lstm.onnx", dry_run=True, **old)
    assert [str(one.message).partition(":")[0] for one in caught] == [
        "option 'calibration' is called calib now",
        "option 'memory' is called memory_limit now",
    ]
    assert {Path(one.filename).name for one in caught} == {Path(__file__).name}
    assert made.plan
    with pytest.raises(InputError, match="'calibration' is calib now, which is given too"):
        sparsecc.compile("m.onnx", calibration="a.npz", calib="b.npz")  # type: ignore[call-arg]


@pytest.mark.parametrize(("old", "now"), old_flags().items())
def test_old_flags_work_with_a_line(
    old: str, now: str, api: Recorder, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments in ([old, "64MiB"], [f"{old}=64MiB"]):
        assert main(["compile", "m.onnx", *arguments]) == 0
        assert api.asked[now.strip("-").replace("-", "_")] == 64 << 20
        assert f"sparsecc: {old} is called {now} now" in capsys.readouterr().err
    assert main(["compile", "-q", "--", old]) == 0
    assert api.asked["arguments"] == (old,)


def test_working_memory_is_the_goal_it_was_beside_an_old_name() -> None:
    assert renamed({"working_memory": 1})[0] == {"working_memory": 1}
    now, told = renamed({"calib_memory": 2, "working_memory": 1})
    assert now == {"working_memory": 2, "footprint": 1}
    assert len(told) == 1


OLD_RECIPE = """
align: auto
allocator: auto
build: {}
calib_memory: 2147483648
calibration: synthetic
calibration_general: null
criterion: auto
device: local
inputs: {x: [1, 1, 16, 16]}
keep: []
layer_criterion: output
measure: false
metric: macs
only: []
prune: [channels, heads, head_dims]
prune_io: false
quantize_options: {}
ratio: 0.5
recover: auto
recover_budget: 2m
seed: 0
sparsity_options: {}
target: onnxruntime
threads: 1
"""
"""As bundles held it before options had one name."""


def test_recipes_of_old_bundles_are_read(
    api: Recorder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(OLD_RECIPE)
    taken, left, told = read_recipe(str(path))
    assert left == []
    assert [re.findall(r"'(\w+)' is called (\w+)", line)[0] for line in told] == [
        ("calib_memory", "working_memory"),
        ("calibration", "calib"),
        ("calibration_general", "calib_general"),
    ]
    assert CompileOptions.of(taken) == CompileOptions(
        ratio=0.5, calib="synthetic", measure=False, inputs={"x": (1, 1, 16, 16)}
    )
    assert main(["compile", "m.onnx", "--recipe", str(path), "--ratio", "0.3"]) == 0
    assert "'calibration' is called calib now" in capsys.readouterr().err
    assert (api.asked["ratio"], api.asked["calib"]) == (0.3, "synthetic")
