"""The public face: its names, what importing it loads, and that the ONNX path never needs torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import sparsecc
from sparsecc.cli import main

HEAVY = {"numpy", "onnx", "onnx_ir", "onnxruntime", "onnxscript", "rich", "scipy", "torch", "yaml"}
PUBLIC = {
    "CompileResult",
    "build",
    "compare",
    "compile",
    "doctor",
    "gate",
    "inspect",
    "profile",
    "reduce",
    "search",
    "sign",
    "verify",
} | {"profile_fleet"}


def loaded_after(code: str, root: Path) -> set[str]:
    """The modules of a fresh process after `code`."""
    code += "\nimport sys; print(' '.join(sys.modules), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    return set(done.stderr.splitlines()[-1].split())


def test_the_public_names() -> None:
    assert set(sparsecc.__all__) - {"__version__"} == PUBLIC
    for name in PUBLIC:
        found = getattr(sparsecc, name)
        assert callable(found)
        assert found.__doc__
    with pytest.raises(AttributeError, match="no attribute 'prune'"):
        _ = sparsecc.prune


def test_rooms_do_not_hide_the_verbs_of_their_names() -> None:
    import sparsecc.runtime.numerics
    import sparsecc.tasks.doctor

    assert callable(sparsecc.verify)
    assert callable(sparsecc.doctor)
    assert {target["name"] for target in sparsecc.doctor()["targets"]} >= {"onnx", "onnxruntime"}


def test_importing_loads_nothing_heavy(root: Path) -> None:
    assert loaded_after("import sparsecc", root) & HEAVY == set()


def test_a_compile_never_imports_torch(root: Path) -> None:
    """The worker's own task, in a process that can tell what it loaded."""
    code = """
import tempfile
from sparsecc.tasks.compile_to_goal import compile_model
with tempfile.TemporaryDirectory() as folder:
    options = {"ratio": 0.5, "measure": False}
    request = {"model": "models/digits_resnet.onnx", "output": folder + "/out", "options": options}
    compile_model(request, lambda event: None)
"""
    loaded = loaded_after(code, root)
    assert "onnxruntime" in loaded
    assert {name for name in loaded if name.split(".")[0] in ("torch", "transformers", "tensorrt")} == set()


def test_inspect_and_why(models_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vit = models_dir / "digits_vit.onnx"
    found = sparsecc.inspect(vit)
    kinds = {g["kind"] for g in found["groups"] if g["prunable"]}
    assert kinds >= {"channel", "head", "head_dim"}
    assert found["prunable"]["params_share"] > 0.9
    free = next(g for g in found["groups"] if g["prunable"])
    name, axis = free["members"][0]
    assert main(["inspect", str(vit), "--why", f"{name}:{axis}", "--json"]) == 0
    why = json.loads(capsys.readouterr().out)["why"]
    assert why["pinned"] is None
    assert set(why["coupled"]) >= {f"{n}:{a}" for n, a in free["members"][1:]}


def test_completion_shows_the_public_names() -> None:
    assert dir(sparsecc) == sorted(sparsecc.__all__)
