"""Bundles of strangers as fixtures: real traps, which leave a canary when one springs."""

from __future__ import annotations

import importlib.machinery
import json
import py_compile
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import sparsecc
from tests.foreign_files import MODEL, seal

TRAP = "open({canary!r}, 'w').close()\ndef f(*args):\n    open({canary!r}, 'w').close()\n    return 1.0\n"
LIBRARY = '__attribute__((constructor)) static void spring(void) {{ fclose(fopen({canary}, "w")); }}'


@pytest.fixture(scope="module")
def traps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `x.py`, `x.pyc`, and where there is a compiler the libraries `x.so` and `x<suffix>`."""
    folder = tmp_path_factory.mktemp("traps")
    canary = str(folder / "canary")
    (folder / "x.py").write_text(TRAP.format(canary=canary))
    py_compile.compile(str(folder / "x.py"), cfile=str(folder / "x.pyc"), doraise=True)
    if compiler := shutil.which("cc"):
        source = folder / "x.c"
        source.write_text("#include <stdio.h>\n" + LIBRARY.format(canary=json.dumps(canary)))
        for name in ("x.so", f"x{importlib.machinery.EXTENSION_SUFFIXES[0]}"):
            subprocess.run([compiler, "-shared", "-fPIC", "-o", str(folder / name), str(source)], check=True)
    return folder


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("honest") / "out"
    sparsecc.compile(MODEL, ratio=0.3, measure=False, output=out)
    return out


@pytest.fixture
def bundle(honest: Path, traps: Path, tmp_path: Path) -> Iterator[Path]:
    """A bundle full of traps, whose manifest agrees with all of them; none has sprung afterwards."""
    out = tmp_path / "out"
    shutil.copytree(honest, out)
    for path in traps.iterdir():
        shutil.copyfile(path, out / path.name)
    seal(out)
    yield out
    assert not (traps / "canary").exists()
