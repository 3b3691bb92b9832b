"""The street plan: rooms stand in the order of the pipeline, and a file imports only from earlier rooms.

A room is a folder of code; a file that lies loose in `sparsecc/` is a room of its own. Links are followed, imports
for type checkers, relative ones and module names in strings count.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from sparsecc.targets import ENTRY_POINT_GROUP
from tests.test_layout import ROOT, SHIPPED, label, module_name

ROOMS = """
    sparsecc/escaping.py sparsecc/errors.py sparsecc/system sparsecc/worker
    sparsecc/axes sparsecc/ir sparsecc/shapes sparsecc/rules sparsecc/graph sparsecc/loading
    sparsecc/targets.py sparsecc/options sparsecc/plan.py sparsecc/remarks.py sparsecc/data sparsecc/runtime
    sparsecc/loss sparsecc/devices sparsecc/measure sparsecc/cost sparsecc/reference
    sparsecc/torch/program sparsecc/torch/rules sparsecc/torch/scores sparsecc/torch/onnx_ops sparsecc/torch/training
    sparsecc/calibrate sparsecc/compilation.py sparsecc/criteria sparsecc/reconstruct sparsecc/allocators
    passes passes/weights passes/quantize passes/sparsity sparsecc/decide
    backends backends/nvidia backends/ort sparsecc/bundle sparsecc/verify sparsecc/gate sparsecc/report
    sparsecc/torch sparsecc/tasks sparsecc/api.py sparsecc/fleet.py sparsecc/search sparsecc/pytest_plugin.py
    sparsecc/__init__.py sparsecc/cli sparsecc/__main__.py
""".split()
"""Ground first, faces last."""

BACKWARDS: dict[str, int] = {}
"""Arrows against the order that still stand, and how many names each carries. It only shrinks."""

LOOSE = 14
"""Files that may lie at the top of `sparsecc/`."""

FILES = {module_name(path): path for path in SHIPPED}
# The name of a group, and no module: runtimes are found where they lie, ours and those of others, and none is named.
_MODULE = re.compile(r"sparsecc(?:\.\w+)+(?::\w+)?", re.ASCII)


def room(path: Path) -> str:
    inside = path.relative_to(ROOT)
    return str(inside) if inside.parent == Path("sparsecc") else str(inside.parent)


def mentions(path: Path) -> Iterator[tuple[str, str]]:
    """(module, name) of all that a file imports, at run time or for types, as a statement or as a string."""
    module = module_name(path)
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = (
                ".".join(package.split(".")[: len(package.split(".")) + 1 - node.level]) if node.level else ""
            )
            whole = ".".join(filter(None, (above, node.module)))
            yield from ((whole, alias.name) for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and _MODULE.fullmatch(node.value):
            if node.value == ENTRY_POINT_GROUP:
                continue
            whole, _, name = node.value.partition(":")
            yield (whole, name)


def arrows(path: Path) -> Iterator[tuple[Path, str]]:
    """Every other room that a file leans on: the file there, and the name."""
    for module, name in mentions(path):
        home = FILES.get(f"{module}.{name}") or FILES.get(module)
        if home is not None and room(home) != room(path):
            yield home, f"{module}.{name}"


def backwards() -> dict[str, set[str]]:
    """'room -> later room' -> the names that go that way."""
    place = {name: index for index, name in enumerate(ROOMS)}
    found: dict[str, set[str]] = {}
    for path in SHIPPED:
        for home, name in arrows(path):
            if place[room(home)] > place[room(path)]:
                found.setdefault(f"{room(path)} -> {room(home)}", set()).add(f"{label(path)}: {name}")
    return found


def test_every_room_has_its_place() -> None:
    assert len(ROOMS) == len(set(ROOMS))
    assert sorted({room(path) for path in SHIPPED} - set(ROOMS)) == []


def test_rooms_lean_on_earlier_rooms_only() -> None:
    found = backwards()
    new = {arrow: sorted(names) for arrow, names in found.items() if len(names) > BACKWARDS.get(arrow, 0)}
    assert new == {}
    assert {arrow: len(found.get(arrow, ())) for arrow in BACKWARDS} == BACKWARDS, "shorten the list"


def test_few_files_lie_loose() -> None:
    loose = [label(path) for path in SHIPPED if path.parent == ROOT / "sparsecc"]
    assert len(loose) <= LOOSE, loose


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("from ..graph import analysis", ("sparsecc.graph", "analysis")),
        ("if TYPE_CHECKING:\n    from sparsecc.api import compile", ("sparsecc.api", "compile")),
        ("def f():\n    import sparsecc.cli", ("sparsecc.cli", "")),
        ("HOME = 'sparsecc.tasks.compile:compile_model'", ("sparsecc.tasks.compile", "compile_model")),
    ],
)
def test_every_form_of_import_is_an_arrow(
    source: str, expected: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "sparsecc" / "cost" / "probe.py"
    path.parent.mkdir(parents=True)
    path.write_text(source)
    monkeypatch.setattr("tests.test_layout.ROOT", tmp_path)
    assert expected in list(mentions(path))


PLACES = [
    tuple(cell.strip() for cell in line.strip("|").split("|"))
    for line in (ROOT / "CONTRIBUTING.md").read_text().splitlines()
    if line.startswith("| a")
]
"""(thing, file and more, name) of CONTRIBUTING's table."""


def defined(path: Path) -> set[str]:
    """Names that a file defines at its top level."""
    names: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return names


def test_every_common_thing_has_its_place() -> None:
    things = {thing for thing, _, _ in PLACES}
    assert things >= {
        "an operator", "a pass", "a criterion", "a backend", "an option", "a fact of the report", "a stage",
        "a source of samples", "a comparison of outputs",
    }  # fmt: skip


@pytest.mark.parametrize(("thing", "where", "name"), PLACES)
def test_the_place_of_a_thing_is_where_contributing_says(thing: str, where: str, name: str) -> None:
    """The name is defined in that file, and nowhere else at the top level of a file of ours."""
    file, symbol = where.split("`")[1], name.strip("`")
    assert symbol in defined(ROOT / file), thing
    others = [label(path) for path in SHIPPED if label(path) != file and symbol in defined(path)]
    unique = symbol.isupper() or symbol[0].isupper() or len(symbol) > 8
    assert not (unique and others), others
