"""What calibration found is found again: between trials, between compiles, never for other data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import sparsecc
from sparsecc.calibrate.layer_statistics import Stats, collect, widest_block
from sparsecc.criteria.obs import greedy
from sparsecc.data.samples import Samples
from sparsecc.errors import InputError
from sparsecc.graph.analysis import Analysis
from sparsecc.graph.groups import find_groups
from sparsecc.system import code_hash
from sparsecc.system.cache import Cache
from sparsecc.system.code_hash import source_files
from tests.repair_models import analysed, mlp, normal


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's cache that is still empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "sparsecc" / "calibration"


def samples(seed: int = 9) -> Samples:
    return Samples(({"x": normal(300, 6, seed=seed)},), True)


def entries(cache: Path) -> list[Path]:
    return [path for path in cache.rglob("*") if path.is_file()]


def assert_equal(one: Stats, other: Stats) -> None:
    assert one.layers.keys() == other.layers.keys()
    for name, layer in one.layers.items():
        twin = other.layers[name]
        np.testing.assert_array_equal(layer.mean, twin.mean)
        np.testing.assert_array_equal(layer.variance, twin.variance)
        for a, b in zip(layer.blocks(), twin.blocks(), strict=True):
            np.testing.assert_array_equal(a.covariance, b.covariance)


def test_a_second_compile_of_the_same_model_and_data_collects_nothing(tmp_path: Path) -> None:
    first = collect(mlp(), samples(), tmp_path / "a")
    second = collect(mlp(), samples(), tmp_path / "b")
    assert (first.facts["source"], second.facts["source"]) == ("samples", "cache")
    assert first.digest == second.digest
    assert_equal(first, second)
    assert not (tmp_path / "b" / "stats_walk").exists()


def test_other_weights_samples_seeds_or_bounds_are_collected_anew(tmp_path: Path) -> None:
    collect(mlp(), samples(), tmp_path / "a")
    changed = mlp()
    array = normal(6, 8, seed=1)
    array[0, 0] += 1
    changed.model.graph.initializers["w1"].const_value = ir.Tensor(array, name="w1")
    assert collect(changed, samples(), tmp_path / "b").facts["source"] == "samples"
    assert collect(mlp(), samples(seed=8), tmp_path / "c").facts["source"] == "samples"
    assert collect(mlp(), samples(), tmp_path / "d", seed=1).facts["source"] == "samples"
    assert collect(mlp(), samples(), tmp_path / "e", memory=1 << 25).facts["source"] == "samples"


def test_keys_follow_the_code_wherever_its_files_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of ours that a collector imports counts, in functions too, and nothing else does."""
    files = {
        str(path.relative_to(code_hash._ROOT)) for path in source_files("sparsecc.calibrate.layer_statistics")
    }
    assert {
        "sparsecc/calibrate/layer_statistics.py",
        "sparsecc/calibrate/moments.py",
        "sparsecc/runtime/segments.py",
        "sparsecc/runtime/emulated.py",
        "sparsecc/ir/extract.py",
    } <= files
    assert not any(file.startswith(("sparsecc/cli", "sparsecc/tasks", "sparsecc/api")) for file in files)

    monkeypatch.setattr(code_hash, "_ROOT", tmp_path)
    room = tmp_path / "sparsecc" / "room"
    room.mkdir(parents=True)
    sources = {
        "a": "from sparsecc.room import (\n    b,\n)",
        "b": "def f():\n    from sparsecc.room.c import x",
        "c": "x = 1",
        "d": "y = 1",
    }
    for name, text in sources.items():
        (room / f"{name}.py").write_text(text)
    hashed = code_hash.code_hash.__wrapped__
    before = hashed("sparsecc.room.a")
    (room / "d.py").write_text("y = 2")
    assert hashed("sparsecc.room.a") == before
    (room / "c.py").write_text("x = 2")
    assert hashed("sparsecc.room.a") != before


def test_a_damaged_entry_is_collected_anew(tmp_path: Path, cache: Path) -> None:
    first = collect(mlp(), samples(), tmp_path / "a")
    victim = max(entries(cache), key=lambda path: path.stat().st_size)
    content = bytearray(victim.read_bytes())
    content[-1] ^= 1
    victim.write_bytes(content)
    second = collect(mlp(), samples(), tmp_path / "b")
    assert second.facts["source"] == "samples"
    assert_equal(first, second)


def test_trials_share_without_a_cache_and_the_report_says_why_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    first = collect(mlp(), samples(), tmp_path / "a")
    assert "set XDG_CACHE_HOME" in first.facts["cache_refused"]
    assert collect(mlp(), samples(), tmp_path / "a").facts["source"] == "cache"
    assert collect(mlp(), samples(), tmp_path / "b").facts["source"] == "samples"


def wide() -> Analysis:
    """6 -> 12 -> 3."""
    text = "g (float[n, 6] x) => (float[n, 3] y) { a = Gemm(x, w1, b1) h = Relu(a) y = MatMul(h, w2) }"
    return analysed(
        text, {"w1": normal(6, 12, seed=1), "b1": normal(12, seed=2), "w2": normal(12, 3, seed=3)}
    )


def test_a_bound_leaves_the_blocks_on_the_diagonal(tmp_path: Path) -> None:
    free, bound = (
        collect(wide(), samples(), tmp_path),
        collect(wide(), samples(), tmp_path, memory=2 * 32 * 25),
    )
    name = next(name for name in free.layers if free.layers[name].mean.shape[1] == 12)
    whole = next(free.layers[name].blocks()).covariance
    assert "block_diagonal" not in free.facts
    assert bound.facts["block_diagonal"][-1] == name
    blocks = list(bound.layers[name].blocks())
    assert [(b.columns.start, b.columns.stop) for b in blocks] == [(0, 5), (5, 10), (10, 12)]
    for block in blocks:
        np.testing.assert_allclose(
            block.covariance, whole[block.columns, block.columns], rtol=1e-5, atol=1e-7
        )
    np.testing.assert_allclose(bound.layers[name].mean, free.layers[name].mean)


def test_criteria_work_on_blocks(tmp_path: Path) -> None:
    analysis = wide()
    stats = collect(analysis, samples(), tmp_path, memory=2 * 32 * 25)
    group = next(g for g in find_groups(analysis) if g.is_free)
    found = greedy(group.atom, group.size, stats)
    assert found is not None
    assert sorted(found.order) == list(range(12))


@pytest.mark.parametrize(
    ("groups", "columns", "cells", "memory", "width"),
    [
        (1, 100, 1, 32 * 10_000, 100),
        (1, 100, 9, 32 * 9_999, 99),
        (1, 20_000, 1, 1 << 40, 12_288),
        (4, 90, 9, 1, 9),
    ],
)
def test_blocks_hold_whole_channels_within_the_bound(
    groups: int, columns: int, cells: int, memory: int, width: int
) -> None:
    assert widest_block(groups, columns, cells, memory) == width


def test_the_cache_lets_go_of_the_oldest(tmp_path: Path) -> None:
    import os

    store = Cache(tmp_path / "store")
    for number in range(4):
        store.put(str(number), bytes(1000))
        os.utime(store._path(str(number)), (number, number))
    store.trim(2500)
    assert [store.get(str(number)) is not None for number in range(4)] == [False, False, True, True]


def test_a_compile_says_what_calibration_took(models_dir: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"ratio": 0.3, "calib": f"{models_dir / 'digits.py'}:calibration"}
    model = models_dir / "digits_lstm.onnx"
    first = sparsecc.compile(model, output=tmp_path / "a", **options)
    second = sparsecc.compile(model, output=tmp_path / "b", **options)
    facts = [
        next(p for p in made.report["passes"] if p["name"] == "calibrate")["facts"]
        for made in (first, second)
    ]
    assert [f["source"] for f in facts] == ["samples", "cache"]
    assert facts[0]["seconds"] >= 0
    assert facts[0]["peak_bytes"] > 1 << 20
    assert first.plan == second.plan


def test_too_little_memory_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--working-memory: 1000 bytes is too little"):
        sparsecc.compile("models/digits_lstm.onnx", working_memory=1000, dry_run=True)
