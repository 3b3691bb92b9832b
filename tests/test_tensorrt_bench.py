"""The GPU benchmark script, as far as a CPU goes."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from sparsecc.targets import TARGETS


@pytest.fixture(scope="module")
def script(root: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_measure", root / "benchmarks" / "gpu" / "measure.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_pairs_are_interleaved(script: ModuleType) -> None:
    calls: list[str] = []

    def timer(name: str, value: float) -> object:
        def call() -> float:
            calls.append(name)
            return value

        return call

    a, b = script.interleaved(timer("a", 1.0), timer("b", 2.0), 50)
    assert (a, b) == ([1.0] * 50, [2.0] * 50)
    pairs = ["".join(calls[i : i + 2]) for i in range(0, 100, 2)]
    assert set(pairs) == {"ab", "ba"}


def test_ratio_finds_a_known_change(script: ModuleType) -> None:
    rng = np.random.default_rng(0)
    load = rng.lognormal(0, 0.3, 300)
    dense, variant = load * rng.lognormal(0, 0.02, 300), 0.6 * load * rng.lognormal(0, 0.02, 300)
    ratio = script.ratio_of(dense, variant)
    assert ratio["low"] < 0.6 < ratio["high"]
    assert ratio["high"] - ratio["low"] < 0.02


def test_variants_use_flags_that_the_target_accelerates(script: ModuleType) -> None:
    assert list(script.variants_for("tensorrt", script.VARIANTS)) == list(script.VARIANTS)
    assert list(script.variants_for("onnxruntime-cuda", ["pruned fp16", "pruned int8"])) == [
        "dense",
        "pruned fp16",
    ]
    for runtime in script.RUNTIMES:
        for variant in script.variants_for(runtime, script.VARIANTS):
            given = script.VARIANTS[variant]
            assert given.get("--quantize", "fp16") in TARGETS[runtime].types | {"fp16"}
            assert given.get("--sparsity", "2:4") in TARGETS[runtime].patterns | {"2:4"}
    argv = script.compile_argv(Path("m.onnx"), "tensorrt", "pruned int8", Path("out"))
    assert argv[-8:] == ["--ratio", "0.5", "--quantize", "int8", "--calib", "m.npz", "-o", "out"]


def test_tables_show_failures_and_kernels(script: ModuleType) -> None:
    rows = {
        "dense": {"bytes": 4_000_000, "engine_bytes": 2_000_000},
        "pruned": {
            "bytes": 2_000_000,
            "engine_bytes": 1_000_000,
            "ratio": {"estimate": 0.5, "low": 0.48, "high": 0.52},
            "layer_times": [
                {"name": "a", "microseconds": 1.0, "op_type": ""},
                {"name": "conv", "microseconds": 9.25, "op_type": ""},
            ],
            "build": {"layers": [{"name": "conv", "type": "fp16", "tactic": "sm80_sparse"}]},
        },
        "pruned int8": {"failed": "no"},
    }
    lines = script.table_of({"m": rows}).splitlines()[2:]
    assert lines[0] == "| m | dense | 4.0 | 2.0 | not timed |  |"
    assert lines[1] == "| m | pruned | 2.0 | 1.0 | 0.500 | 0.480 to 0.520 |"
    assert lines[2] == "| m | pruned int8 |  |  | no |  |"
    assert script.layer_table(rows).splitlines()[2] == "| pruned | conv | 9.2 | fp16 | sm80_sparse |"


def _run(script: ModuleType, folder: Path, *arguments: str) -> dict[str, dict[str, dict[str, object]]]:
    if importlib.util.find_spec("transformers") is None:
        pytest.skip("the models are exported from transformers")
    code = script.main([*arguments, "--quick", "--pairs", "10", "-o", str(folder / "gpu.json")])
    models: dict[str, dict[str, dict[str, object]]] = json.loads((folder / "gpu.json").read_text())["models"]
    assert code == 0, models
    return models


@pytest.mark.filterwarnings("default")
def test_the_whole_script_on_the_cpu(script: ModuleType, tmp_path: Path) -> None:
    """Tiny models through ONNX Runtime's CPU: export, compile, interleaved times, layers, tables."""
    models = _run(
        script, tmp_path, "--runtime", "onnxruntime", "--models", "resnet50", "--variants", "pruned"
    )
    assert set(models["resnet50"]) == {"dense", "pruned"}
    for row in models["resnet50"].values():
        assert len(row["dense_ms"]) == len(row["variant_ms"]) == 10  # type: ignore[arg-type]
        assert row["layer_times"]
        assert {"ratio", "bytes", "build"} <= set(row)


@pytest.mark.slow
@pytest.mark.rtx
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("model", ["resnet50", "bert-base", "vit-b"])
def test_every_variant_of_every_model_builds(model: str, script: ModuleType, tmp_path: Path) -> None:
    rows = _run(script, tmp_path, "--runtime", "tensorrt-rtx", "--models", model)[model]
    assert set(rows) == set(script.VARIANTS)
    assert all(row["engine_bytes"] for row in rows.values())
