"""What messages and documents tell to install exists; two packages of ONNX Runtime in each other's way are found."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sparsecc.system import runtime_packages
from sparsecc.tasks.doctor import examine
from tests.test_docs import DOCUMENTS
from tests.test_layout import SHIPPED

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
LISTED = {
    re.split(r"[\[<>=;! ]", one)[0]
    for one in [*PROJECT["dependencies"], *(name for extra in EXTRAS.values() for name in extra)]
}
"""Every package that pyproject.toml names; the environments of the tests install them by these names."""
ALSO = {"sparsecc", "tensorrt-lean", "notebook", "scikit-learn"}
"""Packages that are named besides."""


def messages() -> Iterator[tuple[str, str]]:
    """(file, text) of every text in the product's code, joined where it is written in pieces."""
    for path in SHIPPED:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield path.name, node.value


NAME = r"(?:'[^']+'|[\w.-]+(?:\[[\w,-]+\])?)"
COMMAND = re.compile(rf"pip install ((?:-U |-y |--[\w-]+ )*)({NAME}(?: {NAME})*)")


def told(text: str) -> Iterator[str]:
    """What the commands in a text install, one package or extra at a time."""
    for found in COMMAND.finditer(text):
        yield from found[2].replace("'", " ").split()


def unknown(name: str) -> bool:
    extras = re.fullmatch(r"(?:sparsecc|\.)\[([\w,-]+)\]", name)
    if extras:
        return not set(extras[1].split(",")) <= set(EXTRAS)
    return name.rstrip(".,") not in LISTED | ALSO


WORDS = {"there", "the", "package", "that", "offers", "it", "or", "give", "use", "build", "without", "."}
"""Words of a sentence behind the command."""


def test_remedies_name_what_exists() -> None:
    commands = [(file, name) for file, text in messages() for name in told(text)]
    assert len(commands) > 15
    assert [one for one in commands if unknown(one[1]) and one[1] not in WORDS] == []
    assert unknown("sparsecc[boards]")
    assert list(told("run pip install 'sparsecc[torch]', or use obs")) == ["sparsecc[torch]"]


def test_documents_name_what_exists() -> None:
    names = [(path.name, name) for path in DOCUMENTS for name in told(path.read_text())]
    assert len(names) > 15
    known = WORDS | {"transformers", "numpy", "onnxruntime", "onnxruntime-gpu[cuda,cudnn]"}
    assert [one for one in names if unknown(one[1]) and one[1] not in known] == []
    said = set(re.findall(r"sparsecc\[([\w-]+)\]", (ROOT / "docs" / "install.md").read_text()))
    assert said == set(EXTRAS) - {"bench", "dev", "ssh"}


@pytest.fixture
def both(tmp_path: Path) -> Path:
    """A folder as two packages leave it behind when one of them was removed: records of both, files of neither."""
    for name, version in (("onnxruntime", "1.31.1"), ("onnxruntime_gpu", "1.30.0")):
        info = tmp_path / "site" / f"{name}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: {version}\n"
        )
    (tmp_path / "site" / "onnxruntime").mkdir()
    (tmp_path / "site" / "onnxruntime" / "__init__.py").write_text("")
    return tmp_path / "site"


REMEDY = "pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime-gpu"


def test_two_packages_of_onnxruntime_are_told(both: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert runtime_packages.collision() == ""
    monkeypatch.syspath_prepend(both)
    (found,) = examine()["collisions"]
    assert found["told"] == "onnxruntime 1.31.1 and onnxruntime-gpu 1.30.0 overwrite each other's files"
    assert found["remedy"] == REMEDY


def test_an_onnxruntime_that_does_not_load_says_why(both: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": f"{both}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-m", "sparsecc", "profile", str(ROOT / "models" / "digits_lstm.onnx")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=both)
    assert done.returncode == 3, done.stderr
    assert f"overwrite each other's files): run {REMEDY}" in done.stderr
    assert "Traceback" not in done.stderr
