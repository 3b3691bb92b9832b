"""The GPU benchmark script, as far as a CPU goes."""

from __future__ import annotations

import importlib.util
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
    assert ratio.low < 0.6 < ratio.high
    assert ratio.high - ratio.low < 0.02


def test_variants_use_flags_that_the_target_accelerates(script: ModuleType) -> None:
    target = TARGETS["tensorrt"]
    for flags in script.VARIANTS.values():
        given = dict(zip(flags[::2], flags[1::2], strict=True))
        assert given.get("--quantize", "fp16") in target.types
        assert given.get("--sparsity", "2:4") in target.patterns
    argv = script.compile_argv(Path("m.onnx"), "tensorrt", "pruned int8", Path("out"))
    assert argv[-8:] == ["--ratio", "0.5", "--quantize", "int8", "--calib", "m.npz", "-o", "out"]


def test_table_shows_failures_too(script: ModuleType) -> None:
    rows = {
        "dense": {"plan_bytes": 2_000_000},
        "pruned": {"plan_bytes": 1_000_000, "ratio": {"estimate": 0.5, "low": 0.48, "high": 0.52}},
        "pruned int8": {"failed": "no"},
    }
    lines = script.table_of({"m": rows}).splitlines()[2:]
    assert lines[0] == "| m | dense | 2.0 | not timed |  |"
    assert lines[1] == "| m | pruned | 1.0 | 0.500 | 0.480 to 0.520 |"
    assert lines[2] == "| m | pruned int8 | no | not timed |  |"
