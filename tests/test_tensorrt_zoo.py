"""Pruned architectures of the zoo build for TensorRT-RTX through the whole compile, in every type."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

if importlib.util.find_spec("torch") is None:
    pytest.skip("the zoo is exported from torch", allow_module_level=True)

from benchmarks.rtx import ARCHITECTURES, RATIO, TYPES, ranges
from sparsecc.errors import InputError
from sparsecc.tasks.compile import compile_model
from tests.zoo.export import onnx_path

pytestmark = pytest.mark.rtx

FAST = (
    ("resnet_basic", "int8"),
    ("mobilenet_v2", "int8"),
    ("unet", "fp16"),
    ("bert", "int8"),
    ("bert", "fp16"),
    ("llama_gqa", "fp32"),
)
"""Five architectures for the default run; the others take minutes."""
REFUSED: dict[str, str] = {}
"""Architectures that TensorRT-RTX cannot take, and the words that say so."""


def _ignore(event: dict[str, Any]) -> None:
    del event


def built(name: str, folder: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Compile an entry of the zoo; the plan and the report, with the engine's bytes as "engine"."""
    asked = {
        "target": "tensorrt-rtx",
        "measure": False,
        "recover": "none",
        "inputs": ranges(name),
    }
    request = {"model": str(onnx_path(name)), "output": str(folder / "out"), "options": {**asked, **options}}
    made = compile_model(request, _ignore)
    return made | {"engine": (folder / "out" / "model.engine").stat().st_size}


@pytest.mark.parametrize(("name", "type_"), FAST)
def test_pruned_models_build(name: str, type_: str, tmp_path: Path) -> None:
    made = built(name, tmp_path, {"ratio": RATIO, **TYPES[type_]})
    assert made["engine"] > 10_000
    sizes = made["report"]["after"]
    assert (sizes["bytes"], sizes["engine_bytes"]) == (
        (tmp_path / "out" / "model.onnx").stat().st_size,
        made["engine"],
    )
    assert made["report"]["after"]["macs"] < made["report"]["before"]["macs"]
    kinds = {entry["type"] for entry in made["plan"]["quantization"].values()}
    assert kinds == ({type_} if type_ != "fp32" else set())


@pytest.mark.slow
@pytest.mark.parametrize("type_", TYPES)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_type_builds_or_says_why_not(name: str, type_: str, tmp_path: Path) -> None:
    if name in REFUSED:
        with pytest.raises(InputError, match=REFUSED[name]) as caught:
            built(name, tmp_path, {"ratio": RATIO, **TYPES[type_]})
        assert "\n" not in str(caught.value)
        return
    assert built(name, tmp_path, {"ratio": RATIO, **TYPES[type_]})["engine"] > 10_000
