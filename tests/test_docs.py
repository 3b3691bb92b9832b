"""What the documents show works: snippets run, links lead somewhere, options exist."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

from sparsecc.allocators import ALLOCATORS
from sparsecc.cli.root import COMMANDS
from sparsecc.cli.root import root as cli
from sparsecc.criteria import CRITERIA

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted(
    path
    for room in (".", "docs", "docs/tutorials", "examples", "models", "benchmarks")
    for path in (ROOT / room).glob("*.md")
)
README = ROOT / "README.md"


def commands() -> list[str]:
    """The lines of README's indented and fenced blocks that call sparsecc on a model that is there."""
    lines = [line.strip() for line in README.read_text().splitlines() if re.match(r"( {4})?sparsecc ", line)]
    return [line for line in lines if "models/" in line]


def snippets() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    (tmp_path / "models").symlink_to(ROOT / "models")
    (tmp_path / "out").mkdir()
    return tmp_path


def run(folder: Path, *arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_readme_shows_both_ways() -> None:
    assert len(commands()) >= 2
    assert snippets()


@pytest.mark.parametrize("line", commands())
def test_commands_of_the_readme_run(line: str, elsewhere: Path) -> None:
    quick = ["--no-measure"] if " compile " in f" {line} " else []
    run(elsewhere, "-m", *shlex.split(line), *quick)


@pytest.mark.parametrize("code", snippets(), ids=range(len(snippets())))
def test_python_of_the_readme_runs(code: str, elsewhere: Path) -> None:
    run(elsewhere, "-c", code)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    links = re.findall(r"\[[^\]]*\]\(([^)#\s]+)(?:#[^)]*)?\)", document.read_text())
    local = [link for link in links if not re.match(r"[a-z]+:", link)]
    assert [link for link in local if not (document.parent / link).exists()] == []


def test_every_document_is_reached_from_the_readme() -> None:
    reached, waiting = {README}, [README]
    while waiting:
        document = waiting.pop()
        for link in re.findall(r"\]\(([^)#\s]+\.md)(?:#[^)]*)?\)", document.read_text()):
            target = (document.parent / link).resolve()
            if target.exists() and target not in reached:
                reached.add(target)
                waiting.append(target)
    assert [path for path in DOCUMENTS if path.resolve() not in reached] == []


def test_the_readme_is_two_screens() -> None:
    assert len(README.read_text().splitlines()) <= 100


def _names_under(heading: str) -> list[str]:
    """The names in the first column of the first table under a heading of docs/methods.md."""
    text = (ROOT / "docs" / "methods.md").read_text().split(f"\n## {heading}\n", 1)[1]
    table = text[text.index("| name |") :].split("\n\n", 1)[0]
    return [name for row in table.splitlines()[2:] for name in re.findall(r"`([^`]+)`", row.split("|")[1])]


def test_the_lists_of_methods_are_current() -> None:
    criteria = _names_under("Criteria")
    assert sorted(criteria) == sorted(CRITERIA)
    assert sorted(_names_under("Allocators")) == sorted(ALLOCATORS)
    for row in re.findall(
        r"^\| (`.*?) \| (.*?) \|", (ROOT / "docs" / "methods.md").read_text(), re.MULTILINE
    ):
        for name in set(re.findall(r"`([^`]+)`", row[0])) & set(criteria):
            assert ("samples" in row[1]) == CRITERIA[name].needs_data, row


def _options(name: str) -> set[str]:
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    return {spelling for param in command.params for spelling in (*param.opts, *param.secondary_opts)}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_options_in_commands_exist(document: Path) -> None:
    text = document.read_text().replace("\\\n", " ")
    for line in re.findall(rf"sparsecc ((?:{'|'.join(COMMANDS)}) [^`\n|]*)", text):
        name, *words = line.split()
        if name == "devices":
            continue
        given = {word.split("=")[0] for word in words if re.match(r"--?[a-z]", word)}
        assert given <= _options(name) | {"--help"}, line
