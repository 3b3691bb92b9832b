"""Users from the start: a clean environment, the wheel and what it asks for, and what they wanted at the end.

Two to five minutes each: a server with its gate, a board, training on with torch, a notebook, and the Action of this
repository as a runner would go through its steps.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import yaml

import sparsecc
from tests.test_tutorials import ROOT, blocks, run

pytestmark = pytest.mark.slow

Installed = Callable[..., dict[str, str]]


def call(*command: str | Path, cwd: Path, environment: Mapping[str, str] | None = None) -> None:
    plain = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=environment or plain,
        capture_output=True,
        text=True,
        check=False,
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


def test_a_server_and_its_gate(user_folder: Path, installed: Installed) -> None:
    said = run("server", user_folder, installed())
    assert "x faster" in said
    assert re.search(r"answers: \[[\d, ]+\]", said)
    assert (user_folder / "released" / "model.onnx").is_file()
    assert (user_folder / "gate.xml").is_file()


def test_a_board(user_folder: Path, installed: Installed, user_home: Path, tmp_path: Path) -> None:
    environment = {**installed("board"), "HOME": str(user_home)}
    environment["BOARD_PYTHON"] = str(tmp_path / "venv" / "bin" / "python")
    assert "ssh://" in run("board", user_folder, environment)
    assert (user_folder / "out" / "model.onnx").is_file()


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


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="torch is installed on Python 3.11 alone")
def test_a_notebook(installed: Installed, tmp_path: Path) -> None:
    """The cells of the tutorial, in a kernel of the clean environment."""
    nbformat = pytest.importorskip("nbformat")
    environment = installed("torch", "scikit-learn", "nbclient", "ipykernel")
    book = nbformat.v4.new_notebook()
    book.cells = [nbformat.v4.new_code_cell(text) for _, text in blocks("notebook")]
    nbformat.write(book, tmp_path / "way.ipynb")
    call("jupyter", "execute", "--inplace", "way.ipynb", cwd=tmp_path, environment=environment)
    shown = [one for cell in nbformat.read(tmp_path / "way.ipynb", 4).cells for one in cell.outputs]
    assert any(one.get("data", {}).get("text/html", "").startswith("<iframe") for one in shown)
    assert (tmp_path / "quick" / "model.onnx").is_file()


def written(text: str, values: Mapping[str, str]) -> str:
    """An expression of GitHub's, or a text that holds some, with its values."""
    return re.sub(r"\$\{\{ *([\w.-]+) *\}\}", lambda found: values.get(found[1], ""), text)


def is_run(condition: str, values: Mapping[str, str]) -> bool:
    """Whether a step runs: names, texts, `==`, `!=`, `&&` and `always()` are all that our Action says."""
    known = re.sub(r"(?:inputs|github)[\w.-]*", lambda found: repr(values.get(found[0], "")), condition)
    return bool(eval(known.replace("always()", "True").replace("&&", " and ")))


def test_the_action_in_ci(user_folder: Path, wheel: Path, tmp_path: Path) -> None:
    """Each `run` step of action.yml in bash as a runner starts it, in an environment without anything; the step that
    sets Python up is that."""
    call(sys.executable, "-m", "venv", tmp_path / "venv", cwd=tmp_path)
    environment = {**os.environ, "PATH": f"{tmp_path / 'venv' / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    environment |= {"PIP_CONSTRAINT": str(ROOT / "constraints.txt")}
    environment.pop("PYTHONPATH", None)
    sparsecc.compile(
        user_folder / "model.onnx",
        ratio=0.5,
        calib=f"{user_folder / 'digits.py'}:calibration",
        measure=False,
        output=user_folder / "small",
    )
    action = yaml.safe_load((ROOT / "action.yml").read_text())
    given = {"current": "small", "baseline": "model.onnx", "max-regression": "5%", "version": str(wheel)}
    values = {f"inputs.{name}": str(one.get("default", "")) for name, one in action["inputs"].items()}
    values |= {f"inputs.{name}": value for name, value in given.items()} | {"github.action_path": str(ROOT)}
    runner = {name: str(tmp_path / name) for name in ("GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY", "RUNNER_TEMP")}
    (tmp_path / "RUNNER_TEMP").mkdir()
    ran = []
    for step in action["runs"]["steps"]:
        if "run" not in step or not is_run(step.get("if", "True"), values):
            continue
        own = {name: written(str(value), values) for name, value in step.get("env", {}).items()}
        script = tmp_path / "step.sh"
        script.write_text(step["run"])
        bash = ("bash", "--noprofile", "--norc", "-eo", "pipefail", script)
        call(*bash, cwd=user_folder, environment={**environment, **runner, **own})
        ran.append(step.get("id", "install"))
    assert ran == ["install", "gate"]
    assert (tmp_path / "GITHUB_OUTPUT").read_text() == "verdict=OK\n"
    assert "small" in (tmp_path / "GITHUB_STEP_SUMMARY").read_text()
    assert (tmp_path / "RUNNER_TEMP" / "gate.xml").is_file()
