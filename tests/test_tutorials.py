"""The tutorials work as they are written: their files and commands, in their order, in an empty folder."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TUTORIALS = ROOT / "docs" / "tutorials"
BLOCK = re.compile(r"^```(sh|python|yaml)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

pytestmark = pytest.mark.slow


def blocks(name: str) -> list[tuple[str, str]]:
    """(language, text) of the fenced blocks of a tutorial; those that are indented are for other machines."""
    return [(found[1], found[2]) for found in BLOCK.finditer((TUTORIALS / f"{name}.md").read_text())]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Where `sparsecc` and `python` are those of the tests."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, module in (("sparsecc", " -m sparsecc"), ("python", "")):
        path = programs / name
        path.write_text(f'#!/bin/sh\nexec {sys.executable}{module} "$@"\n')
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return {
        **os.environ,
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "XDG_CONFIG_HOME": str(tmp_path / "config"),
    }


def run(name: str, folder: Path, environment: Mapping[str, str]) -> str:
    """Write the files of a tutorial and run its commands; what they printed."""
    said = ""
    for language, text in blocks(name):
        file = re.match(r"# file: (\S+)\n", text)
        if file is not None:
            (folder / file[1]).write_text(text)
            continue
        assert language == "sh", text
        done = subprocess.run(
            ["bash", "-ec", text], cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{text}{done.stdout}{done.stderr}"
        said += done.stdout
    return said


def test_a_server_with_a_gate(user_folder: Path, environment: Mapping[str, str]) -> None:
    said = run("server", user_folder, environment)
    assert "x faster" in said
    assert re.search(r"answers: \[[\d, ]+\]", said)
    assert (user_folder / "gate.xml").is_file()


def test_a_board_over_ssh(user_folder: Path, environment: Mapping[str, str], user_home: Path) -> None:
    said = run("board", user_folder, {**environment, "HOME": str(user_home), "BOARD_PYTHON": sys.executable})
    assert "ssh://" in said
    assert (user_folder / "jetson" / "build.sh").is_file()


def test_a_notebook_with_torch(
    tmp_path: Path, environment: Mapping[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch", reason="torch is not installed: pip install 'sparsecc[torch]'")
    nbformat, client = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    book = nbformat.v4.new_notebook()
    book.cells = [nbformat.v4.new_code_cell(text) for _, text in blocks("notebook")]
    client.NotebookClient(book, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [output for cell in book.cells for output in cell.outputs]
    pages = [one["data"]["text/html"] for one in shown if "text/html" in one.get("data", {})]
    assert any(page.startswith("<iframe") for page in pages)
    proved, removed, *_ = eval(book.cells[3].outputs[-1]["data"]["text/plain"], {"PosixPath": Path})
    assert proved
    assert removed == 0.0
    assert (tmp_path / "quick" / "model.onnx").is_file()
