"""The wheel holds what it should and works alone; the Dockerfile's commands do what they are for."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = {"sparsecc": "sparsecc", "passes": "sparsecc/passes", "backends": "sparsecc/backends"}


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile as (instruction, arguments), continued lines joined."""
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in lines]


def copied() -> list[str]:
    """What the Dockerfile takes from the repository."""
    arguments = [rest.split() for name, rest in instructions() if name == "COPY" and "--from" not in rest]
    return [source for words in arguments for source in words[:-1]]


def call(*command: str | Path, cwd: Path, environment: Mapping[str, str] | None = None) -> str:
    """The command's output; fails the test with its errors."""
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={**inherited, **(environment or {})},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that the Dockerfile copies, in a folder of their own."""
    folder = tmp_path_factory.mktemp("source")
    for name in copied():
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=ignored)
        else:
            shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation")
    call(*pip, "--wheel-dir", folder, ".", cwd=source)
    (built,) = folder.iterdir()
    return built


def test_wheel_holds_every_file_of_the_rooms_and_nothing_else(wheel: Path) -> None:
    expected = set()
    for room, package in ROOMS.items():
        for parent, children, names in os.walk(ROOT / room):
            children[:] = [child for child in children if child != "__pycache__"]
            inside = Path(package, Path(parent).relative_to(ROOT / room))
            expected |= {(inside / name).as_posix() for name in names}
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert held == expected


def test_wheel_declares_command_and_licence(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        info = metadata.removesuffix("METADATA")
        described = archive.read(metadata).decode()
        assert "sparsecc = sparsecc.__main__:main" in archive.read(info + "entry_points.txt").decode()
        assert archive.read(info + "licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()
    assert "\nLicense-Expression: Apache-2.0\n" in described
    assert "\nRequires-Python: >=3.10\n" in described


def test_wheel_works_without_the_repository(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", site)
    call(*pip, wheel, cwd=tmp_path)
    program = "import sparsecc.passes.base as p, sparsecc.backends.base as b; print(p.__file__, b.__file__)"
    places = call(sys.executable, "-c", program, cwd=tmp_path, environment={"PYTHONPATH": str(site)})
    assert places.split() == [str(site / f"sparsecc/{room}/base.py") for room in ("passes", "backends")]


def test_dockerfile_copies_only_what_is_not_ignored() -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert set(copied()) == allowed
    assert [name for name in copied() if not (ROOT / name).exists()] == []


def test_image_runs_sparsecc_without_being_root() -> None:
    stages = [index for index, (name, _) in enumerate(instructions()) if name == "FROM"]
    final = dict(instructions()[stages[-1] :])
    assert len(stages) == 2
    assert int(final["USER"]) > 0
    assert final["ENTRYPOINT"] == '["sparsecc"]'


@pytest.mark.slow
def test_dockerfile_installs_a_working_command(source: Path, tmp_path: Path) -> None:
    prefix = tmp_path / "sparsecc"
    runs = [rest for name, rest in instructions() if name == "RUN" and "pip install" in rest]
    assert len(runs) == 2
    python_first = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    for run in runs:
        here = run.replace("/opt/", f"{tmp_path}/")
        call("bash", "-ec", here, cwd=source, environment=python_first)
    parts = json.loads((prefix / "sbom.json").read_text())
    assert parts["bomFormat"] == "CycloneDX"
    assert parts["metadata"]["component"]["name"] == "sparsecc"
    assert {"onnxruntime", "onnx", "numpy", "model-signing"} <= {part["name"] for part in parts["components"]}
    assert "compile" in call(prefix / "bin" / "sparsecc", "--help", cwd=tmp_path)
    place = call(prefix / "bin" / "python", "-c", "import sparsecc; print(sparsecc.__file__)", cwd=tmp_path)
    assert place.startswith(str(prefix))
