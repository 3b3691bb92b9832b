"""What the commands print, against golden files: one JSON result and the text made of it per command."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from sparsecc.cli.compare_ import compare_view
from sparsecc.cli.compile_view import compile_view
from sparsecc.cli.doctor import doctor_view
from sparsecc.cli.inspect_ import inspect_view
from sparsecc.cli.profile_ import profile_view
from sparsecc.cli.render import draw
from sparsecc.cli.verify_ import verify_view
from sparsecc.cli.view import Block, Grid, Line

GOLDEN = Path(__file__).parent / "golden" / "cli"
VIEWS: dict[str, Callable[[Any], Sequence[Block]]] = {
    "compile": compile_view,
    "inspect": inspect_view,
    "profile": profile_view,
    "compare": compare_view,
    "verify": verify_view,
    "doctor": doctor_view,
}
ESC, RIGHT_TO_LEFT = "\x1b", "\u202e"


def result(name: str) -> Any:
    return json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", VIEWS)
def test_view_is_the_golden_text(name: str, update_golden: bool) -> None:
    text = draw(VIEWS[name](result(name)), width=100, colour=False)
    golden = GOLDEN / f"{name}.txt"
    if update_golden:
        golden.write_text(text, encoding="utf-8")
    assert text == golden.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", VIEWS)
@pytest.mark.parametrize("width", [40, 57, 80, 200])
def test_no_line_is_wider_than_the_terminal(name: str, width: int) -> None:
    text = draw(VIEWS[name](result(name)), width=width, colour=False)
    assert max(len(line) for line in text.splitlines()) <= width


@pytest.mark.parametrize("name", VIEWS)
def test_colour_only_when_asked_for(name: str) -> None:
    blocks = VIEWS[name](result(name))
    assert ESC not in draw(blocks, width=80, colour=False)
    assert ESC in draw(blocks, width=80, colour=True)


def test_colour_does_not_change_the_words() -> None:
    import re

    blocks = compile_view(result("compile"))
    coloured = re.sub(r"\x1b\[[0-9;]*m", "", draw(blocks, width=100, colour=True))
    plain = draw(blocks, width=100, colour=False)
    assert coloured.split() == plain.split()


def poison(value: Any) -> Any:
    """Every text of a result with an escape sequence, markup, a direction change and a line break put in."""
    if isinstance(value, str):
        return f"{ESC}[31m[bold red]{RIGHT_TO_LEFT}\n{value}"
    if isinstance(value, list):
        return [poison(one) for one in value]
    return {key: poison(one) for key, one in value.items()} if isinstance(value, dict) else value


@pytest.mark.parametrize("name", VIEWS)
def test_hostile_names_are_shown_and_not_obeyed(name: str) -> None:
    text = draw(VIEWS[name](poison(result(name))), width=4000, colour=False)
    assert ESC not in text
    assert RIGHT_TO_LEFT not in text
    assert "\\x1b[31m[bold red]\\u202e" in text


def test_what_was_not_measured_is_not_shown() -> None:
    report = result("compile")
    for part in ("latency", "accuracy", "fidelity", "verification", "pinned", "skipped", "warnings"):
        del report[part]
    text = draw(compile_view(report), width=100, colour=False)
    for word in ("faster", "time", "clock", "top-1", "fidelity", "proved", "pinned", "skipped", "Warning"):
        assert word not in text
    assert "51 % fewer MACs" in text


def test_what_is_not_proved_is_said_with_the_reason() -> None:
    report = result("compile")
    report["verification"] |= {"status": "not proved", "reason": "output 'y' is not finite on any probe"}
    report["verification"] |= {"constant_outputs": ["y", "z"], "one_size": ["axis 0 of 'x' (1)"]}
    text = draw(compile_view(report), width=100, colour=False)
    head = text.partition("before")[0]
    assert "Not proved: output 'y' is not finite on any probe." in head
    assert "Surgery proved" not in text
    assert "The same on every input that was tried: output 'y' and 1 more." in text
    assert "Tried at one size only: axis 0 of 'x' (1)." in text


def test_nothing_removed_is_said() -> None:
    report = result("compile")
    report["after"] = report["before"]
    del report["latency"]
    for group in report["groups"]:
        group["kept"] = group["size"]
    text = draw(compile_view(report), width=100, colour=False)
    assert text.startswith("nothing was removed")
    assert "Removed: nothing." in text


@pytest.mark.parametrize(
    ("ci95", "expected"),
    [([1.9, 2.1], "2.00x faster"), ([0.9, 1.1], "no change in latency"), ([0.4, 0.6], "2.00x slower")],
)
def test_headline_says_no_more_than_the_interval(ci95: list[float], expected: str) -> None:
    report = result("compile")
    report["latency"]["speedup"] = {"estimate": 0.5 if ci95[1] < 0.9 else 2.0, "ci95": ci95}
    first = draw(compile_view(report), width=200, colour=False).splitlines()[0]
    assert first.startswith(expected)


def test_dry_run_names_no_bundle() -> None:
    text = draw(compile_view({**result("compile"), "bundle": None}), width=100, colour=False)
    assert "Nothing was written" in text
    assert "verify" not in text


def test_many_reasons_are_counted_not_listed() -> None:
    pinned = [{"what": f"t{n}", "reason": f"because {n % 9}"} for n in range(90)]
    text = draw(compile_view({**result("compile"), "pinned": pinned}), width=100, colour=False)
    assert "and 4 more reasons in report.json" in text


def test_why_is_a_numbered_chain() -> None:
    why = {
        "axis": "w:0",
        "pinned": "graph output",
        "steps": ["Conv: same", "Add: same"],
        "coupled": ["b:0", "c:1"],
    }
    text = draw(inspect_view({**result("inspect"), "why": why}), width=100, colour=False)
    assert text.splitlines() == [
        "w:0 is pinned: graph output",
        "1. Conv: same",
        "2. Add: same",
        "",
        "goes together with 2 others:",
        "b:0",
        "c:1",
    ]
    free = draw(inspect_view({**result("inspect"), "why": {**why, "pinned": None}}), width=100, colour=False)
    assert free.startswith("w:0 can be cut")


def test_blocks_of_nothing_draw() -> None:
    assert draw([Line(""), Grid(("a", ">b"), [])], width=10, colour=False).strip()
