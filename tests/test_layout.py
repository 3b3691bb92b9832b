"""The repository keeps its shape: packages, links, the way imports point, sizes, and what is never caught."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from importlib import metadata
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {"sparsecc": "sparsecc", "sparsecc.passes": "passes", "sparsecc.backends": "backends"}
LONGEST = 400
LITERAL_TABLES = frozenset({"sparsecc/options/table.py"})
"""Files whose length is that of a table."""
LAST_RESORTS = frozenset({"sparsecc/cli/failure.py", "sparsecc/worker/child.py", "sparsecc/data/texts.py"})
"""Where a process ends: what nobody foresaw becomes one line and an exit code there. And where a library raises
nothing narrower."""
CORE = ("axes", "errors", "graph", "rules", "targets")
ABOVE = {
    "core": ("sparsecc.passes", "sparsecc.backends", "sparsecc.cli", "sparsecc.torch"),
    "sparsecc": ("sparsecc.cli",),
    "passes": ("sparsecc.backends", "sparsecc.cli", "sparsecc.torch"),
    "backends": ("sparsecc.cli", "sparsecc.torch"),
    "cli": (),
}
"""What a room must not import. A backend may use passes: it lowers a model for its runtime."""


def project() -> dict[str, Any]:
    declared: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
    return declared


def sources(*folders: str) -> list[Path]:
    """Our Python files under these folders, each once: links are not followed."""
    found: list[Path] = []
    for folder in folders:
        for parent, children, names in os.walk(ROOT / folder):
            children[:] = [child for child in children if child != "__pycache__"]
            found += [Path(parent, name) for name in names if name.endswith(".py")]
    return sorted(found)


SHIPPED = sources(*PACKAGES.values())


def module_name(path: Path) -> str:
    """The name under which a shipped file is imported."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    inside = parts if parts[0] == "sparsecc" else ("sparsecc", *parts)
    return ".".join(inside[:-1] if inside[-1] == "__init__" else inside)


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, in functions too; not those for type checkers alone."""
    pending: list[ast.AST] = [ast.parse(path.read_text(), str(path))]
    package = module_name(path) if path.name == "__init__.py" else module_name(path).rpartition(".")[0]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.rsplit(".", node.level - 1)[0] + "." if node.level else ""
            yield from (f"{above}{node.module or ''}.{alias.name}".replace("..", ".") for alias in node.names)
        pending += ast.iter_child_nodes(node)


def is_inside(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == package or module.startswith(package + ".") for package in packages)


def room(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    if parts[0] != "sparsecc":
        return parts[0]
    if parts[1] in CORE:
        return "core"
    return "cli" if parts[1] in ("cli", "__main__") else "sparsecc"


def label(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("name", ["passes", "backends"])
def test_links_make_the_top_level_folders_sub_packages(name: str) -> None:
    link = ROOT / "sparsecc" / name
    assert link.is_symlink()
    assert os.readlink(link) == f"../{name}"
    assert (link / "__init__.py").is_file()


def test_every_folder_of_code_is_a_listed_package() -> None:
    folders = {path.parent for path in SHIPPED}
    assert [str(folder) for folder in sorted(folders) if not (folder / "__init__.py").is_file()] == []
    on_disk = sorted(module_name(folder / "__init__.py") for folder in folders)
    assert project()["tool"]["setuptools"]["packages"] == on_disk


def test_package_directories_are_the_rooms() -> None:
    assert project()["tool"]["setuptools"]["package-dir"] == PACKAGES


def test_every_data_file_is_packaged() -> None:
    patterns = project()["tool"]["setuptools"]["package-data"]["*"]
    data = [
        Path(parent, name)
        for folder in PACKAGES.values()
        for parent, _, names in os.walk(ROOT / folder)
        for name in names
        if not name.endswith((".py", ".pyc")) and "__pycache__" not in parent
    ]
    assert [label(path) for path in data if not any(fnmatch(path.name, p) for p in patterns)] == []
    assert ROOT / "sparsecc" / "py.typed" in data


def test_command_is_the_cli_main() -> None:
    assert project()["project"]["scripts"] == {"sparsecc": "sparsecc.__main__:main"}
    assert metadata.version("sparsecc") == project()["project"]["version"]


@pytest.mark.parametrize("name", CORE)
def test_core_modules_exist(name: str) -> None:
    folder = ROOT / "sparsecc" / name
    assert folder.is_dir() or folder.with_suffix(".py").is_file()


def forbidden(path: Path) -> tuple[str, ...]:
    """What a file must not import."""
    if is_inside(module_name(path), ("sparsecc.torch",)):
        return ("sparsecc.cli",)
    return (*ABOVE[room(path)], "torch")


def test_imports_point_one_way() -> None:
    found = [
        f"{label(path)} imports {module}"
        for path in SHIPPED
        for module in imports(path)
        if is_inside(module, forbidden(path))
    ]
    assert found == []


def test_a_file_is_imported_by_its_packaged_name() -> None:
    bare = [(label(path), module) for path in SHIPPED for module in imports(path)]
    assert [found for found in bare if is_inside(found[1], ("passes", "backends", "tests", "models"))] == []


def test_no_module_is_named_like_a_library() -> None:
    declared = project()["project"]
    requirements = [
        *declared["dependencies"],
        *chain.from_iterable(declared["optional-dependencies"].values()),
    ]
    libraries = {re.split(r"[^\w-]", text)[0].replace("-", "_") for text in requirements}
    # sparsecc.torch is a public face, named for whom it serves; its modules are under the rule.
    named = [label(path) for path in SHIPPED if path.stem in libraries | {"ir", "tensorrt_rtx"}]
    assert named == []


@pytest.mark.parametrize(
    ("statement", "works"),
    [
        ("import sparsecc.passes, sparsecc.backends", True),
        ("import passes", False),
        ("import backends", False),
    ],
)
def test_rooms_are_importable_only_inside_the_package(tmp_path: Path, statement: str, works: bool) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", statement], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert (done.returncode == 0) is works, done.stderr
    assert works or "ModuleNotFoundError" in done.stderr


def test_files_stay_short() -> None:
    lengths = {
        label(path): len(path.read_text().splitlines())
        for path in [*SHIPPED, *sources("tests", "models", "benchmarks")]
        if label(path) not in LITERAL_TABLES
    }
    assert {name: length for name, length in lengths.items() if length > LONGEST} == {}


def broad_handlers(path: Path) -> list[int]:
    """Lines of handlers that catch everything and do not pass it on."""
    lines = []
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.ExceptHandler):
            continue
        caught = (
            {name.id for name in ast.walk(node.type) if isinstance(name, ast.Name)} if node.type else {""}
        )
        last = node.body[-1]
        passes_on = isinstance(last, ast.Raise) and last.exc is None
        if caught & {"", "Exception", "BaseException"} and not passes_on:
            lines.append(node.lineno)
    return lines


def test_nothing_is_caught_broadly() -> None:
    found = {label(path): broad_handlers(path) for path in SHIPPED if label(path) not in LAST_RESORTS}
    assert {name: lines for name, lines in found.items() if lines} == {}
