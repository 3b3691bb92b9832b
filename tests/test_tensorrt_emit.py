"""What a bundle for TensorRT holds where there is no GPU: the ONNX file, build scripts, and settings."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
from pathlib import Path

import onnx_ir as ir
import pytest

from sparsecc.backends.nvidia.engine import TensorrtEngine
from sparsecc.backends.nvidia.options import (
    BuildOptions,
)
from sparsecc.backends.nvidia.scripts import python_script, read_settings, shell_script
from sparsecc.errors import InputError, UnavailableError
from tests.tensorrt_graphs import conv_residual

NO_GPU = not Path("/dev/nvidia0").exists()
OPTIONS = {
    "workspace": "1GiB",
    "optimization_level": 4,
    "refit": True,
    "sparse_weights": True,
    "hardware_compatible": "ampere+",
    "profiles": {"x": "1x3x16x16|2x3x16x16|4x3x16x16", "it's": "1|1|1"},
}


def _ignore(what: str, share: float) -> None:
    del what, share


def test_emitted_bundle(tmp_path: Path) -> None:
    options = {key: value for key, value in OPTIONS.items() if key != "profiles"} | {"emit": "onnx"}
    artefact = TensorrtEngine().build(ir.from_proto(conv_residual("n")), tmp_path, options, _ignore)
    assert artefact.main == "model.onnx"
    assert set(artefact.files) == {"model.onnx", "build.sh", "build.py", "build.json"}
    assert {p.name for p in tmp_path.iterdir()} == set(artefact.files)
    settings, left = read_settings(tmp_path)
    assert left == []
    assert settings.refit
    assert settings.emit == "engine"
    compile((tmp_path / "build.py").read_text(), "build.py", "exec")
    if NO_GPU:
        with pytest.raises(UnavailableError, match="--emit onnx"):
            TensorrtEngine().finish(tmp_path, _ignore)


def test_emitting_is_deterministic(tmp_path: Path) -> None:
    contents = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        TensorrtEngine().build(ir.from_proto(conv_residual()), tmp_path / name, {"emit": "onnx"}, _ignore)
        contents.append({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()})
    assert contents[0] == contents[1]


@pytest.mark.parametrize(("version", "typed"), [("101303", True), ("110401", False), ("8601", None)])
def test_build_script_picks_the_line_of_its_version(version: str, typed: bool | None, tmp_path: Path) -> None:
    """The shell script itself, against a stand-in trtexec that says a version and prints its arguments."""
    options = BuildOptions.from_mapping({k: v for k, v in OPTIONS.items() if k != "profiles"})
    (tmp_path / "build.sh").write_text(shell_script(options))
    stand_in = tmp_path / "trtexec"
    stand_in.write_text(
        f'#!/bin/sh\n[ "$1" = --help ] && {{ echo "&&&& RUNNING [TensorRT v{version}]"; exit 0; }}\n'
        'for a in "$@"; do echo "$a"; done\n'
    )
    stand_in.chmod(0o755)
    environment = os.environ | {"TRTEXEC": str(stand_in)}
    done = subprocess.run(["sh", str(tmp_path / "build.sh")], capture_output=True, text=True, env=environment)
    if typed is None:
        assert done.returncode == 3
        assert "TensorRT 10 or later" in done.stderr
        return
    flags = done.stdout.splitlines()
    assert ("--stronglyTyped" in flags) is typed
    assert {"--onnx=model.onnx", "--memPoolSize=workspace:1024", "--refit", "--sparsity=enable"} <= set(flags)
    assert not {
        f for f in flags if f.startswith(("--fp16", "--int8", "--bf16", "--fp8", "--best", "--calib"))
    }


@pytest.mark.skipif(shutil.which("sh") is None, reason="no shell")
def test_every_flag_is_explained() -> None:
    script = shell_script(BuildOptions.from_mapping({k: v for k, v in OPTIONS.items() if k != "profiles"}))
    used = {
        word.partition("=")[0]
        for line in script.splitlines()
        if "exec" in line
        for word in line.split()
        if word.startswith("--")
    }
    explained = {line.split()[1] for line in script.splitlines() if line.startswith("#   --")}
    assert used - {"--help"} <= explained


def test_python_script_carries_odd_names_safely() -> None:
    text = python_script(BuildOptions.from_mapping({"profiles": {"a'\"\\\n{}": "1|1|1"}}))
    line = next(line for line in text.splitlines() if line.startswith("OPTIONS"))
    assert list(ast.literal_eval(line.partition(" = ")[2])["profiles"]) == ["a'\"\\\n{}"]


@pytest.mark.parametrize(
    "content",
    [None, "", "{", "[]", '{"schema": "other"}', '{"schema": "sparsecc.tensorrt-build/1", "options": 3}'],
)
def test_damaged_settings_are_refused(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "build.json").write_text(content)
    with pytest.raises(InputError, match="emit onnx"):
        read_settings(tmp_path)
