"""Patterns are proved layer by layer: a mask at the wrong place, a changed or merged weight is never "proved"."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from sparsecc.errors import InternalError
from sparsecc.passes.sparsity import sparsify
from sparsecc.tasks.compile import compile_model
from tests.test_passes_proved import afterwards, proof_of, twice

PATTERNS = ("2:4", "1:4", "block4x4@0.5", "unstructured@0.5")


def in_pattern(folder: Path, pattern: str, method: str = "auto", **more: str) -> dict[str, Any]:
    """What a compile that makes a pattern alone says of its proof."""
    options = {
        "ratio": 0,
        "sparsity": pattern,
        "sparsity_options": {"method": method, **more},
        "calib": "synthetic",
        "measure": False,
        "target": "onnx",
    }
    return proof_of(twice(), folder, options)


Spoil = Callable[[np.ndarray, np.ndarray], np.ndarray]


def zeroed(
    monkeypatch: pytest.MonkeyPatch, spoil: Spoil, *, within: bool = False, last: bool = False
) -> None:
    """From here on w4 (32, 32, 3, 3) in its pattern becomes `spoil(dense, sparse)`: within the pass, before it knows
    what it stored, or behind it; `last`: in the graph alone that is built."""
    stored, run = sparsify._Job._stored, sparsify.Sparsify.run

    def stores(self: Any, layer: Any, weight: np.ndarray, share: float) -> Any:
        wrong = spoil(layer.array(), weight) if layer.weight.name == "w4" else weight
        return stored(self, layer, wrong, share)

    def spoils(self: Any, model: ir.Model, plan: Any, compilation: Any) -> Any:
        result = run(self, model, plan, compilation)
        assert result.patterned is not None
        dense, value = result.patterned.before.graph.initializers["w4"], model.graph.initializers["w4"]
        assert dense.const_value is not None
        assert value.const_value is not None
        wrong = spoil(dense.const_value.numpy(), value.const_value.numpy())
        for graph in (model.graph, *([] if last else [result.patterned.after.graph])):
            graph.initializers["w4"].const_value = ir.Tensor(np.ascontiguousarray(wrong), name="w4")
        return result

    if within:
        monkeypatch.setattr(sparsify._Job, "_stored", stores)
    else:
        monkeypatch.setattr(sparsify.Sparsify, "run", spoils)


@pytest.mark.parametrize("method", ["magnitude", "wanda", "refit", "sparsegpt"])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_layers_are_what_their_pattern_makes_of_them(pattern: str, method: str, tmp_path: Path) -> None:
    found = in_pattern(tmp_path, pattern, method)
    assert found["status"] == "proved", found["reason"]
    assert found["layers_in_pattern"] == (4 if pattern.endswith("@0.5") else 3)


@pytest.mark.parametrize("more", [{"permute": "true"}, {"eora": "0.5"}])
def test_channels_in_another_order_and_paths_beside_are_no_faults(
    more: dict[str, str], tmp_path: Path
) -> None:
    found = in_pattern(tmp_path, "2:4", "refit", **more)
    assert found["status"] == "proved", found["reason"]
    assert found["layers_in_pattern"] == 3


SPOILT: Mapping[str, tuple[Spoil, str]] = {
    "next": (
        lambda dense, sparse: np.where(np.roll(sparse != 0, 1, axis=1), dense, 0),
        "along what it sums over",
    ),
    "dense": (lambda dense, sparse: dense, "along what it sums over"),
    "axis": (
        lambda dense, sparse: np.where(np.arange(32)[:, None, None, None] % 4 < 2, dense, 0),
        "sums over",
    ),
    "one": (
        lambda dense, sparse: sparse * np.where(np.arange(32) == 5, 1.5, 1)[:, None, None, None],
        "not what",
    ),
    "rolled": (lambda dense, sparse: np.roll(sparse, 1, axis=0), "not what its pattern made of it"),
    "merged": (
        lambda dense, sparse: np.broadcast_to(sparse[:1], sparse.shape),
        "not what its pattern made of it",
    ),
}


@pytest.mark.parametrize("fault", SPOILT)
@pytest.mark.parametrize("method", ["magnitude", "refit"])
def test_a_weight_that_lost_its_pattern_or_changed_is_an_internal_error(
    method: str, fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil, words = SPOILT[fault]
    zeroed(monkeypatch, lambda dense, sparse: spoil(dense, sparse).astype(np.float32), within=False)
    with pytest.raises(InternalError, match=words):
        in_pattern(tmp_path, "2:4", method)


@pytest.mark.parametrize("method", ["magnitude", "wanda", "refit", "sparsegpt"])
def test_a_mask_of_the_next_channel_is_named(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zeroed(
        monkeypatch, lambda dense, sparse: np.where(np.roll(sparse != 0, 1, axis=0), dense, 0), within=True
    )
    found = in_pattern(tmp_path, "2:4", method)
    assert found["status"] == "not proved"
    assert "by its scores" in found["reason"] or "the plainest mask" in found["reason"]


def test_a_weight_that_changes_behind_the_pass_is_an_internal_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zeroed(monkeypatch, lambda dense, sparse: np.roll(sparse, 4, axis=1), last=True)
    with pytest.raises(InternalError, match="'w4' is not what its pattern made of it"):
        in_pattern(tmp_path, "2:4", "refit")


@pytest.mark.parametrize("method", ["refit", "sparsegpt"])
def test_a_refit_that_is_worse_than_none_is_named(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zeroed(monkeypatch, lambda dense, sparse: 2 * sparse, within=True)
    found = in_pattern(tmp_path, "2:4", method)
    assert found["status"] == "not proved"
    assert "layer" in found["reason"]
    assert "where the plainest mask explains" in found["reason"]


def test_a_block_of_which_only_a_part_is_zero_is_an_internal_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def torn(dense: np.ndarray, sparse: np.ndarray) -> np.ndarray:
        return np.where(np.roll(sparse != 0, 1, axis=1), dense, 0)

    zeroed(monkeypatch, torn, within=True)
    with pytest.raises(InternalError, match="blocks"):
        in_pattern(tmp_path, "block4x4@0.5", "magnitude")


@pytest.mark.parametrize("quantize", ["int8", "fp16"])
def test_a_pattern_that_a_type_loses_is_an_internal_error(
    quantize: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    onnx.save(twice(), tmp_path / "model.onnx")
    options = {"ratio": 0, "sparsity": "2:4", "quantize": quantize, "calib": "synthetic", "measure": False}
    options |= {"target": "tensorrt", "emit": "onnx", "sparsity_options": {"min_channels": "4"}}
    request = {"model": str(tmp_path / "model.onnx"), "options": options, "output": str(tmp_path / "out")}
    assert compile_model(request, lambda event: None)["report"]["verification"]["layers_in_pattern"] == 3

    def full(name: str, a: np.ndarray) -> np.ndarray:
        return np.where(a == 0, 1, a).astype(a.dtype) if name.startswith("w4") and a.ndim == 4 else a

    afterwards(monkeypatch, full)
    with pytest.raises(InternalError, match="'w4' of what was built is not 2:4 any more"):
        compile_model({**request, "force": True}, lambda event: None)
