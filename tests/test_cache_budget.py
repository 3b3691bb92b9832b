"""Budgets of a decoder's cache and of the time of a token: `--kv-bytes`, `--decode-latency`, `--cache-tokens`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import yaml

from sparsecc import api
from sparsecc.data.language import TextModel
from sparsecc.decide.goal_search import Search
from sparsecc.decide.goals import Goal, Trial, words_of
from sparsecc.errors import GoalError, InputError
from sparsecc.loading.models import load_ir
from sparsecc.loading.normalise import normalise
from sparsecc.options import CompileOptions
from tests.decoder_models import Decoder

DENSE = 4 * 2 * 4 * 4 * 16
"""Bytes of cache a token: layers, keys and values, heads, bytes, widths."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Decoder(layers=4, positions=64).folder(tmp_path_factory.mktemp("decoder") / "dense")


def compiled(folder: Path, output: Path, **options: Any) -> dict[str, Any]:
    settings = {"measure": False, "next_steps": False, "recover": "none", "criterion": "l2", **options}
    return api.compile(folder, output=output, **settings).report


def cache_of(file: Path) -> int:
    """Bytes of cache a token of a model in float, by the shapes of its inputs."""
    shapes = [
        [d.dim_value for d in v.type.tensor_type.shape.dim]
        for v in onnx.load(file).graph.input
        if v.name.startswith("past")
    ]
    return sum(4 * shape[1] * shape[3] for shape in shapes)


def test_heads_layers_and_both_are_tried_for_a_cache_and_judged_by_text(folder: Path, tmp_path: Path) -> None:
    ids = np.random.default_rng(0).integers(0, 64, (32, 16))
    empty = {f"past_key_values.{n}.{part}": (32, 4, 0, 16) for n in range(4) for part in ("key", "value")}
    caches: dict[str, Any] = {name: np.zeros(shape, np.float32) for name, shape in empty.items()}
    np.savez(tmp_path / "texts.npz", input_ids=ids, attention_mask=np.ones_like(ids), **caches)
    options: dict[str, Any] = {"kv_bytes": DENSE * 3 // 4, "budget": 600, "calib": tmp_path / "texts.npz"}
    report = compiled(folder, tmp_path / "out", recover="auto", allocator="global", **options)
    assert report["verification"]["status"] == "proved"
    assert report["goal"] == {"asked": {"kv_bytes": DENSE * 3 // 4}, "met": True, "excess": 0.0}
    trials = report["trials"]
    kinds = [set(trial["levers"]["prune"]) for trial in trials]
    assert kinds == [
        {"channels", "heads", "head_dims"},
        {"layers"},
        {"channels", "heads", "head_dims", "layers"},
    ]
    assert all(trial["kv"] <= DENSE * 3 // 4 and trial["ratio"] == 0 for trial in trials)
    best = min(trials, key=lambda trial: trial["nats"])
    assert report["chosen"]["levers"]["prune"] == best["levers"]["prune"]
    assert report["before"]["kv"] == DENSE
    assert report["after"]["kv"] == cache_of(tmp_path / "out" / "model.onnx") == best["kv"]
    recipe = yaml.safe_load((tmp_path / "out" / "recipe.yaml").read_text())
    again = CompileOptions.of(recipe)
    assert (again.ratio, again.kv_bytes, again.prune) == (0, DENSE * 3 // 4, tuple(best["levers"]["prune"]))


@pytest.mark.parametrize("prune", [["heads", "channels"], ["layers", "channels", "heads"]])
def test_beside_a_ratio_it_is_an_order(prune: list[str], folder: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"ratio": 0.25, "metric": "params", "prune": prune, "calib": "none"}
    report = compiled(folder, tmp_path / "out", kv_bytes=1300, **options)
    assert "trials" not in report
    assert report["verification"]["status"] == "proved"
    assert report["removed"]["share"] >= 0.25
    assert report["after"]["kv"] == cache_of(tmp_path / "out" / "model.onnx") <= 1300
    alone = compiled(folder, tmp_path / "alone", **options)
    assert alone["after"]["kv"] > 1300


def test_what_is_tried_where_it_is_of_no_use_has_a_larger_cache(folder: Path, tmp_path: Path) -> None:
    """A lower ratio alone cannot help where the cache is what cost most; types alone leave it whole."""
    ids = np.random.default_rng(0).integers(0, 64, (32, 16))
    caches = {f"past_key_values.{n}.{part}": (32, 4, 0, 16) for n in range(4) for part in ("key", "value")}
    empty: dict[str, Any] = {name: np.zeros(shape, np.float32) for name, shape in caches.items()}
    np.savez(tmp_path / "texts.npz", input_ids=ids, attention_mask=np.ones_like(ids), **empty)
    options: dict[str, Any] = {"ratio": 0.8, "kv_bytes": DENSE // 8, "calib": tmp_path / "texts.npz"}
    report = compiled(folder, tmp_path / "out", next_steps=True, **options)
    assert report["verdict"]["judgement"] == "useless"
    tried = {step["flags"]: step["quality_db"] for step in report["next_steps"]}
    larger = [flags for flags in tried if "--kv-bytes" in flags]
    types = "--quantize int8 instead of pruning"
    assert sorted(float(flags.split()[-1]) for flags in larger) == [DENSE * 9 // 16, DENSE * 25 // 32]
    assert tried[types] > max(tried[flags] for flags in larger)


def test_a_cache_that_fits_is_left_alone(folder: Path, tmp_path: Path) -> None:
    report = compiled(folder, tmp_path / "out", kv_bytes=DENSE, calib="none")
    assert report["goal"]["met"]
    assert report["after"]["params"] == report["before"]["params"]
    assert len(report["trials"]) == 1


def test_what_cannot_be_so_small_is_told(folder: Path, tmp_path: Path) -> None:
    options = {"kv_bytes": 64, "prune": ["heads"], "calib": "none"}
    with pytest.raises(GoalError, match="of cache a token"):
        compiled(folder, tmp_path / "out", **options)
    report = compiled(folder, tmp_path / "other", ratio=0, **options)
    assert any("--kv-bytes 64 was not reached" in warning for warning in report["warnings"])


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"kv_bytes": 100}, "--kv-bytes: the model has no caches"),
        ({"ratio": 0, "kv_bytes": 100}, "--kv-bytes: the model has no caches"),
        ({"decode_latency": 5.0, "measure": True}, "--decode-latency: the model is no decoder of text"),
        ({"decode_latency": 5.0}, "leave out --no-measure"),
        ({"ratio": 0.1, "cache_tokens": 5}, "--cache-tokens: the model is no decoder of text"),
        ({"decode_latency": 5.0, "ratio": 0.3}, "are different budgets"),
    ],
)
def test_what_is_no_decoder_has_none(options: dict[str, Any], told: str, tmp_path: Path) -> None:
    text = "g (float[N, 8] x, float[8, 8] w) => (float y) { y = MatMul(x, w) }"
    model = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["": 18]> {text}')
    weight = onnx.numpy_helper.from_array(np.eye(8, dtype=np.float32), "w")
    model.graph.input.pop()
    model.graph.initializer.append(weight)
    onnx.save(model, tmp_path / "plain.onnx")
    with pytest.raises(InputError, match=told):
        compiled(tmp_path / "plain.onnx", tmp_path / "out", **options)


def test_a_token_is_timed_behind_the_cache_that_is_asked_for(folder: Path, tmp_path: Path) -> None:
    text = TextModel.of(normalise(load_ir(folder / "model.onnx")))
    assert text is not None
    assert text.step(0, 50)["past_key_values.0.key"].shape[2] == 50
    assert text.prompt(0, 50)["input_ids"].shape == (1, 50)
    with pytest.raises(InputError, match="knows 64 positions: give at most 63"):
        compiled(folder, tmp_path / "out", ratio=0.1, cache_tokens=64)
    sizes = {"input_ids": (1, 4), "attention_mask": (1, 4)}
    with pytest.raises(InputError, match="--cache-tokens: --input names the sizes"):
        compiled(folder, tmp_path / "out", ratio=0.1, cache_tokens=5, inputs=sizes)
    options: dict[str, Any] = {
        "decode_latency": 1000.0,
        "cache_tokens": 50,
        "measure": True,
        "calib": "none",
    }
    report = compiled(folder, tmp_path / "out", **options)
    assert report["goal"]["met"]
    assert report["measured_at"]["past_key_values.0.key"] == [1, 4, 50, 16]
    assert report["prompt"]["tokens"] == 50


def test_a_search_counts_the_cache_and_takes_the_text_that_it_reads_best() -> None:
    """Heads lose less than layers; what is over the cache does not meet the goal; what is of no use is no answer."""
    some = Trial(0.0, 0.0, 100, 100, dense_kv=2000)
    ways = {"heads": replace(some, kv=1000, nats=2.1), "layers": replace(some, kv=900, nats=2.6)}
    goal = Goal(kv_bytes=1000)

    def attempt(family: Any, ratio: float) -> Trial:
        assert ratio == 0
        return replace(ways[family["prune"][0]], levers=dict(family))

    families = [{"prune": ("heads",)}, {"prune": ("layers",)}]
    assert Search(goal, attempt, families, orders=True, keeps_all=lambda _: True).settle().best.nats == 2.1
    ways["heads"] = replace(ways["heads"], kv=1500)
    assert Search(goal, attempt, families, orders=True, keeps_all=lambda _: True).settle().best.nats == 2.6
    ways = {name: replace(one, is_useless=True) for name, one in ways.items()}
    assert Search(goal, attempt, families, orders=True, keeps_all=lambda _: True).settle().excess == np.inf


@pytest.mark.parametrize(
    ("prune", "told"),
    [
        (("channels", "heads", "head_dims"), "heads"),
        (("channels", "layers"), "layers"),
        (("layers",), "layers alone"),
        (("channels",), "channels"),
        (("head_dims", "channels"), "head_dims, channels"),
    ],
)
def test_what_a_way_removes_is_named_as_it_was_asked_for(prune: tuple[str, ...], told: str) -> None:
    assert words_of({"prune": prune}) == [told]
