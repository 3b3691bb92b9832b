"""Backends: asked, never looked at; declared by their folder, or by an installed package's entry point."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sparsecc.backends import backend_named, backend_names
from sparsecc.backends.base import Backend
from sparsecc.targets import TARGETS, own_runtimes
from tests.test_layout import SHIPPED, label, module_name

CLASSES = {"Backend", "OnnxRuntimeCpu", "PlainOnnx", "OnnxRuntimeCuda", "OnnxRuntimeTensorrt"} | {
    "TensorrtEngine",
    "TensorrtRtx",
}


def asks_which(node: ast.AST) -> bool:
    """Whether it tests what a backend or target is called, or of which class it is."""
    if isinstance(node, ast.Call) and ast.unparse(node.func) in ("isinstance", "issubclass", "type"):
        return any(isinstance(n, ast.Name) and n.id in CLASSES for n in ast.walk(node))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        return node.func.attr in ("startswith", "endswith") and is_name(node.func.value)
    return isinstance(node, ast.Compare) and any(map(is_name, (node.left, *node.comparators)))


def is_name(node: ast.AST) -> bool:
    text = ast.unparse(node)
    return text == "backend" or text.endswith(
        ("target.name", "target.backend", "backend.name", "options.target")
    )


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("if isinstance(backend, OnnxRuntimeCpu): pass", True),
        ("if context.target.backend.startswith('x'): pass", True),
        ("fits = target.name in ('a', 'b')", True),
        ("if backend == 'onnx': pass", True),
        ("if backend.runs_here and target.dialect == 'qdq': pass", False),
    ],
)
def test_the_question_is_known_when_it_is_seen(source: str, found: bool) -> None:
    assert any(map(asks_which, ast.walk(ast.parse(source)))) is found


def test_nobody_outside_asks_which_backend_it_is() -> None:
    found = []
    for path in SHIPPED:
        if not module_name(path).startswith("sparsecc.backends") and label(path) != "sparsecc/targets.py":
            nodes = ast.walk(ast.parse(path.read_text("utf-8")))
            found += [f"{label(path)}:{getattr(n, 'lineno', 0)}" for n in nodes if asks_which(n)]
    assert found == []


def test_every_folder_declares_targets_whose_backends_it_has() -> None:
    for runtime in own_runtimes():
        assert runtime.TARGETS
        assert {target.backend for target in runtime.TARGETS} == set(runtime.BACKENDS)
    for name in backend_names():
        backend = backend_named(name)
        assert isinstance(backend, Backend)
        assert backend.name == name
    assert len(TARGETS) == len(set(TARGETS)) == sum(len(runtime.TARGETS) for runtime in own_runtimes())


DECLARED = """
from sparsecc.targets import Target

TARGETS = (Target("npu", "npu", frozenset({"int8"}), conv_multiple=4),)
BACKENDS = {"npu": "small_npu.backend:Npu"}
"""
BACKEND = '''
import json
from pathlib import Path

import onnx_ir as ir

from sparsecc.backends.base import Artefact, Availability, Backend
from sparsecc.runtime.session import open_session


class Npu(Backend):
    """Writes the graph and a program beside it; runs what it wrote with ONNX Runtime."""

    name = "npu"
    forms = ("onnx", "program")

    def availability(self):
        return Availability(True, "7.1")

    def build_options(self, asked):
        return super().build_options(asked) | {"cores": asked.threads}

    def build(self, model, folder, options, progress):
        ir.save(model, folder / "model.onnx")
        program = {"nodes": [node.op_type for node in model.graph], "options": dict(options)}
        (folder / "model.npu").write_text(json.dumps(program))
        return Artefact("model.onnx", ("model.onnx", "model.npu"), {"cores": options["cores"]})

    def load(self, path, *, threads=1):
        return open_session(path, threads=threads)

    def latency(self, path, feeds, progress, *, device="local", threads=1, layers=False):
        return {"cycles": sum(array.size for array in feeds.values())}
'''


@pytest.fixture
def installed(tmp_path: Path) -> dict[str, str]:
    """The environment in which a package offers a backend, and another one is broken."""
    site = tmp_path / "site"
    for package, files in {
        "small_npu": {"__init__.py": DECLARED, "backend.py": BACKEND},
        "broken_npu": {"__init__.py": "import a_library_that_is_not_there"},
    }.items():
        (site / package).mkdir(parents=True)
        for name, text in files.items():
            (site / package / name).write_text(text)
        about = site / f"{package}-1.0.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        point = package.removesuffix("_npu").replace("small", "npu")
        (about / "entry_points.txt").write_text(f"[sparsecc.backends]\n{point} = {package}\n")
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), *filter(None, sys.path)])}


def sparsecc(arguments: list[str], environment: dict[str, str], code: int = 0) -> str:
    command = [sys.executable, "-m", "sparsecc", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == code, done.stderr
    return done.stdout if code == 0 else done.stderr


def test_an_installed_package_offers_a_backend(
    tmp_path: Path, models_dir: Path, installed: dict[str, str]
) -> None:
    """The command line takes its target, workers build, run and profile with it, and doctor lists it."""
    out = tmp_path / "out"
    model = str(models_dir / "digits_resnet.onnx")
    flags = ["--target", "npu", "--ratio", "0.3", "--threads", "2", "--build", "fast=yes"]
    sparsecc(["compile", model, *flags, "-o", str(out)], installed)
    report, plan = (json.loads((out / name).read_text()) for name in ("report.json", "plan.json"))
    assert report["target"]["name"] == "npu"
    assert report["verification"]["runs"] is True
    program = json.loads((out / "model.npu").read_text())
    assert program["options"] == {"fast": True, "cores": 2}
    widths = [group["kept"] for group in plan["groups"] if group["kept"] < group["size"]]
    assert widths
    assert all(kept % 4 == 0 for kept in widths)
    profile = json.loads(sparsecc(["profile", str(out), "--target", "npu", "--json"], installed))
    assert profile["cycles"] > 0
    rows = {row["name"]: row for row in json.loads(sparsecc(["doctor", "--json"], installed))["targets"]}
    assert rows["npu"]["version"] == "7.1"
    assert "a_library_that_is_not_there" in rows["broken"]["reason"]
    assert rows["onnxruntime"]["ok"]


def test_what_it_does_not_offer_is_refused_in_one_line(
    tmp_path: Path, models_dir: Path, installed: dict[str, str]
) -> None:
    model, out = str(models_dir / "digits_resnet.onnx"), str(tmp_path / "out")
    for flags, told in {
        ("--target", "npu", "--emit", "engine"): "emits onnx or program",
        ("--target", "npu", "--quantize", "fp8"): "it has int8",
        ("--target", "npu", "--latency", "5ms"): "cannot be measured here",
        ("--target", "broken"): "a_library_that_is_not_there",
        ("--target", "npi"): "did you mean 'npu'",
    }.items():
        error = sparsecc(
            ["compile", model, *flags, "-o", out], installed, code=3 if "--latency" in flags else 2
        )
        assert told in error
        assert not Path(out).exists()
