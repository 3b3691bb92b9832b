"""Users from the start: a clean environment, the wheel and what it asks for, and what they wanted at the end.

About four minutes each: a server with its gate in CI, a board, training on with torch. The notebook's steps are in
`test_tutorials.py`.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.sshd import running_sshd
from tests.test_tutorials import ROOT, run

pytestmark = pytest.mark.slow

Installed = Callable[..., dict[str, str]]


def call(*command: str | Path, cwd: Path) -> None:
    plain = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(word) for word in command], cwd=cwd, env=plain, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of a copy of the sources, so that nothing is left in the repository."""
    source, folder = tmp_path_factory.mktemp("source") / "sparsecc", tmp_path_factory.mktemp("wheel")
    kept = ("sparsecc", "passes", "backends", "pyproject.toml", "README.md", "LICENSE")
    source.mkdir()
    for name in kept:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, symlinks=True)
        else:
            shutil.copy(ROOT / name, source / name)
    pip = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation")
    call(*pip, "--wheel-dir", folder, source, cwd=folder)
    (built,) = folder.iterdir()
    return built


@pytest.fixture
def installed(wheel: Path, tmp_path: Path) -> Installed:
    """Makes an environment with the wheel, an extra of it, and other packages; gives the variables to run in it."""

    def make(extra: str = "", *others: str) -> dict[str, str]:
        call(sys.executable, "-m", "venv", tmp_path / "venv", cwd=tmp_path)
        programs = tmp_path / "venv" / "bin"
        what = f"{wheel}[{extra}]" if extra else str(wheel)
        pins = ("-c", ROOT / "constraints.txt")
        pip = (programs / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
        call(*pip, *pins, what, *others, cwd=tmp_path)
        plain = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        path = f"{programs}{os.pathsep}{os.environ['PATH']}"
        return {**plain, "PATH": path, "XDG_CONFIG_HOME": str(tmp_path / "config")}

    return make


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The user's own files: a model and its data."""
    made = tmp_path / "user"
    made.mkdir()
    shutil.copy(ROOT / "models" / "digits_resnet.onnx", made / "model.onnx")
    for name in ("digits.py", "digits.npz"):
        shutil.copy(ROOT / "models" / name, made)
    return made


def test_a_server_and_its_gate(folder: Path, installed: Installed) -> None:
    said = run("server", folder, installed())
    assert "x faster" in said
    assert re.search(r"answers: \[[\d, ]+\]", said)
    assert (folder / "released" / "model.onnx").is_file()
    assert (folder / "gate.xml").is_file()


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    sessions = tmp_path / "sshd"
    sessions.mkdir()
    with running_sshd(sessions) as server:
        yield server.home(tmp_path / "home")


def test_a_board(folder: Path, installed: Installed, home: Path, tmp_path: Path) -> None:
    environment = {**installed("board"), "HOME": str(home)}
    environment["BOARD_PYTHON"] = str(tmp_path / "venv" / "bin" / "python")
    assert "ssh://" in run("board", folder, environment)
    assert (folder / "out" / "model.onnx").is_file()


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="torch is installed on Python 3.11 alone")
def test_training_on_with_torch(installed: Installed, tmp_path: Path) -> None:
    environment = installed("torch", "scikit-learn")
    example = shutil.copy(ROOT / "examples" / "train_on.py", tmp_path)
    done = subprocess.run(
        ["python", example, tmp_path / "out"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "out" / "bundle" / "model.onnx").is_file()
