"""SECURITY.md's table: behind every promise stands a test, and it exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HEAD = "| threat | behaviour | test |"


def promises() -> list[tuple[str, str]]:
    """(threat, what stands in its column of tests) of every row."""
    lines = (ROOT / "SECURITY.md").read_text(encoding="utf-8").splitlines()
    rows = []
    for line in lines[lines.index(HEAD) + 2 :]:
        if not line.startswith("|"):
            break
        threat, _, tests = (cell.strip() for cell in line.strip("|").split(" | "))
        rows.append((threat, tests))
    return rows


def functions_of(file: Path) -> set[str]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize(("threat", "cell"), promises(), ids=[threat[:40] for threat, _ in promises()])
def test_every_promise_names_a_test_that_exists(threat: str, cell: str) -> None:
    named = re.findall(r"`([^`]+)`", cell)
    assert any("test_" in name for name in named), "no test stands behind this promise"
    file = Path()
    for name in named:
        path, _, function = name.partition("::")
        if path:
            file = ROOT / (path if "/" in path else f"tests/{path}")
        assert file.is_file(), name
        if function:
            assert function.startswith("test_"), name
            assert function in functions_of(file), name


def test_the_table_is_read() -> None:
    assert len(promises()) > 25
