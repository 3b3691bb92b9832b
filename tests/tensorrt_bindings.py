"""NVIDIA's real Python bindings on any machine: their wheels over empty shared libraries, in a cache.

The bindings need nine functions of three libraries to load. Libraries that we compile here have these nine, all
of which return nothing: every class, member and signature is then the real one, and nothing can be built.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

WHEELS = {10: "tensorrt-cu12-bindings>=10.13,<11", 11: "tensorrt-cu13-bindings>=11,<12"}
LIBRARIES = ("nvinfer", "nvinfer_plugin", "nvonnxparser")
SYMBOLS = (
    "createInferBuilder_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "getBuilderPluginRegistry",
    "getNvOnnxParserVersion",
    "getPluginRegistry",
    "initLibNvInferPlugins",
)

_LIST = """
import json, tensorrt_bindings as api
def signatures(thing):
    text = getattr(thing, "__doc__", None)
    return text if isinstance(text, str) else ""
found = {"": {"__version__": api.__version__}}
for name in dir(api):
    thing = getattr(api, name)
    found[""][name] = signatures(thing.__init__ if isinstance(thing, type) else thing)
    found[name] = {member: signatures(getattr(thing, member, None)) for member in dir(thing)}
print(json.dumps(found))
"""


@dataclass(frozen=True)
class Bindings:
    """One major version: where its module lies, and the libraries that let it load."""

    major: int
    folder: Path

    def run(
        self, script: str, *arguments: str, extra: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run Python code in which `tensorrt_bindings` and `tensorrt` are these."""
        paths = [str(self.folder / "wheel"), *([str(extra)] if extra else [])]
        environment = os.environ | {
            "LD_LIBRARY_PATH": str(self.folder / "libraries"),
            "PYTHONPATH": os.pathsep.join(paths),
        }
        command = [sys.executable, "-c", textwrap.dedent(script), *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)

    def names(self) -> Mapping[str, Mapping[str, str]]:
        """Class -> member -> documentation, which opens with the signatures; class "" is the module."""
        done = self.run(_LIST)
        assert done.returncode == 0, done.stderr
        found: dict[str, dict[str, str]] = json.loads(done.stdout)
        return found


def bindings(major: int, cache: Path) -> Bindings:
    """The bindings of TensorRT 10 or 11, made in `cache` unless they lie there. Skips where that cannot be."""
    folder = cache / f"{major}-{sys.version_info.major}.{sys.version_info.minor}"
    if not folder.exists():
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            made = Path(scratch) / "made"
            _unpack(_wheel(major, Path(scratch)), made / "wheel")
            _compile_libraries(major, made / "libraries")
            with contextlib.suppress(OSError):  # another test process was faster
                made.rename(folder)
    return Bindings(major, folder)


def _wheel(major: int, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "-q", "-d"]
    done = subprocess.run([*command, str(folder), WHEELS[major]], capture_output=True, text=True, timeout=300)
    found = sorted(folder.glob("*.whl"))
    if done.returncode != 0 or not found:
        pytest.skip(f"no wheel of {WHEELS[major]} for this Python can be had: {done.stderr.strip()[-200:]}")
    return found[0]


def _unpack(wheel: Path, folder: Path) -> None:
    """The module as it is, and beside it `tensorrt`, which is that module under its public name."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    (folder / "tensorrt.py").write_text(
        "from tensorrt_bindings import *\nfrom tensorrt_bindings import __version__\n"
    )


def _compile_libraries(major: int, folder: Path) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler for the empty libraries that the bindings load")
    folder.mkdir()
    source = folder / "empty.c"
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in SYMBOLS))
    for name in LIBRARIES:
        library = f"lib{name}.so.{major}"
        subprocess.run(
            [compiler, "-shared", "-fPIC", f"-Wl,-soname,{library}", "-o", folder / library, source],
            check=True,
        )


_SIGNATURE = re.compile(r"^(?:\d+\. )?(\w+)\((.*)\) -> ", re.MULTILINE)


def accepted(documentation: str) -> list[tuple[int, int]]:
    """(least, most) positional arguments, without `self`, of every overload that the documentation lists."""
    found = []
    for _, text in _SIGNATURE.findall(documentation):
        parts = [part for part in _split(text) if part and not part.startswith(("self:", "*"))]
        if "*args" in text:
            continue
        optional = sum("=" in part for part in parts)
        found.append((len(parts) - optional, len(parts)))
    return found


def _split(text: str) -> list[str]:
    """At the commas that stand in no bracket."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "([{<") - (letter in ")]}>")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]


def as_members(names: Mapping[str, Mapping[str, Any]]) -> dict[str, list[str]]:
    """Class -> members, as the lists of names have it."""
    return {name: list(members) for name, members in names.items()}
