"""Patterns: valid on the axis that the hardware wants, better with data, exact where channels move."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsecc.errors import InputError, InternalError
from sparsecc.ir.mapped import Spool
from sparsecc.passes.quantize import Quantize
from sparsecc.passes.sparsity import Sparsify, permute
from sparsecc.passes.sparsity.pattern import parse_pattern
from sparsecc.passes.sparsity.permute import best_order, reorder
from sparsecc.passes.sparsity.refit import refit_rows
from sparsecc.passes.sparsity.sparsegpt import sparsegpt
from sparsecc.passes.sparsity.validity import invalid_groups
from sparsecc.passes.weights.input_moments import walk_inputs
from sparsecc.passes.weights.linear_layers import find_layers
from tests.compilations import compilation
from tests.quantize_models import convolutions, feeds_for, transformer
from tests.test_quantize import apply, outputs, relative_error

BUILDERS = {"convolutions": convolutions, "transformer": transformer}


def weight(model: ir.Model, name: str) -> np.ndarray:
    tensor = model.graph.initializers[name].const_value
    assert tensor is not None
    return tensor.numpy()


def by_hand(array: np.ndarray, axis: int) -> bool:
    """2:4 checked one group at a time."""
    moved = np.moveaxis(array, axis, 0)
    for start in range(0, moved.shape[0], 4):
        for place in np.ndindex(moved.shape[1:]):
            index: Any = (slice(start, start + 4), *place)
            if np.count_nonzero(moved[index]) > 2:
                return False
    return True


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt", "refit", "auto"])
@pytest.mark.parametrize("name", sorted(BUILDERS))
def test_every_group_is_valid_on_the_hardware_axis(name: str, method: str) -> None:
    model = BUILDERS[name]()
    result, plan = apply(Sparsify(method=method, min_channels=4), model, "tensorrt", [feeds_for(model)])
    assert len(plan.patterns) >= 4
    for tensor, entry in plan.patterns.items():
        array = weight(model, tensor)
        assert by_hand(array, entry["axis"]), tensor
        assert invalid_groups(array, entry["axis"], 2, 4)[0] == 0
        assert not by_hand(array, 0 if entry["axis"] == 1 else 1), "the other axis is not the one"
    assert all(layer["invalid_groups"] == 0 for layer in result.facts["layers"].values())


def test_gemm_with_and_without_transb_follow_the_reduction_axis() -> None:
    model = convolutions()
    _, plan = apply(Sparsify(method="magnitude", min_channels=4), model, "tensorrt")
    assert plan.patterns["fc.weight"]["axis"] == 1
    model = transformer()
    _, plan = apply(Sparsify(method="magnitude"), model, "tensorrt")
    assert plan.patterns["up.weight"]["axis"] == 0


def test_what_is_not_eligible_stays_dense_with_its_reason() -> None:
    model = convolutions(group=16)
    dense = {name: weight(model, name) for name in ("conv1.weight", "conv2.weight", "fc.weight")}
    result, _ = apply(Sparsify(method="magnitude"), model, "tensorrt")
    reasons = {skip.where: skip.reason for skip in result.remarks}
    assert "no multiple of 4" in reasons["Conv_conv1.weight"]
    assert "no multiple of 4" in reasons["Conv_conv2.weight"]
    assert "fewer than 32" in reasons["Gemm_fc.weight"]
    for name, array in dense.items():
        assert np.array_equal(weight(model, name), array)


def test_methods_order_as_their_papers_say() -> None:
    errors = {}
    for method in ("wanda", "sparsegpt", "refit"):
        model = convolutions()
        feeds = feeds_for(model, batch=16)
        result, _ = apply(Sparsify(method=method, min_channels=4), model, "tensorrt", [feeds])
        errors[method] = float(np.mean([layer["output_error"] for layer in result.facts["layers"].values()]))
    assert errors["refit"] < errors["wanda"]
    assert errors["sparsegpt"] < errors["wanda"]


@settings(max_examples=20)
@given(st.integers(0, 10_000))
def test_the_refit_is_the_least_squares_solution(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows, matrix = rng.standard_normal((200, 12)), rng.standard_normal((3, 12))
    mask = parse_pattern("2:4").mask(np.abs(matrix))
    repaired = refit_rows(matrix, mask, rows.T @ rows)
    for row in range(3):
        kept = mask[row]
        best, *_ = np.linalg.lstsq(rows[:, kept], rows @ matrix[row], rcond=None)
        assert np.allclose(repaired[row, kept], best, atol=1e-3)
        assert not repaired[row, ~kept].any()


def test_sparsegpt_beats_its_own_mask_without_updates() -> None:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((500, 8)) @ rng.standard_normal((8, 32)) + 0.2 * rng.standard_normal((500, 32))
    matrix = rng.standard_normal((16, 32))
    updated, mask = sparsegpt(matrix, rows.T @ rows, parse_pattern("2:4"))
    plain = np.square(rows @ (np.where(mask, matrix, 0) - matrix).T).sum()
    assert np.square(rows @ (updated - matrix).T).sum() < 0.5 * plain


def test_moments_are_those_of_the_convolution_itself() -> None:
    """W X^T X W^T from the moments equals the energy of the real outputs, for strides, pads and groups."""
    for model in (convolutions(), convolutions(group=4, kernel=2)):
        feeds = feeds_for(model, batch=2)
        sites, _ = find_layers(model)
        for inputs in walk_inputs(model, sites, compilation("tensorrt", [feeds])):
            (site,) = inputs.layers
            seen = inputs.moments()
            np.testing.assert_allclose(inputs.mean(), seen.mean)
            parts = np.split(site.matrix(site.array()).astype(np.float64), site.group)
            energy = sum(
                np.einsum("ok,kl,ol->", part, gram, part)
                for part, gram in zip(parts, seen.blocks[0].gram, strict=True)
            )
            exposed = model.clone()
            node = next(n for n in exposed.graph if n.name == site.name)
            if len(node.inputs) > 2:
                node.replace_input_with(2, None)
            exposed.graph.outputs[:] = [node.outputs[0]]
            result = outputs(exposed, feeds)
            assert energy == pytest.approx(float(np.square(result.astype(np.float64)).sum()), rel=1e-4)


def test_reordering_channels_keeps_the_function_and_more_weight() -> None:
    saliency = {}
    for moves in (False, True):
        model = convolutions()
        step = Sparsify(method="magnitude", permute=moves, min_channels=4)
        result, _ = apply(step, model, "tensorrt")
        saliency[moves] = result.facts["layers"]["Conv_conv3.weight"]["kept_saliency"]
    assert saliency[True] > saliency[False] + 0.005
    model = convolutions()
    feeds = feeds_for(model)
    before = outputs(model, feeds)
    original = weight(model, "conv3.weight").copy()
    apply(Sparsify(pattern="31:32", method="magnitude", permute=True), model, "onnx")
    assert relative_error(before, outputs(model, feeds)) < 0.05
    assert original.shape == weight(model, "conv3.weight").shape


def test_a_reordered_model_without_zeros_computes_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    for build in BUILDERS.values():
        model = build()
        feeds = feeds_for(model)
        before = outputs(model, feeds)
        first = {name: weight(model, name).copy() for name in model.graph.initializers if "weight" in name}
        monkeypatch.setattr("sparsecc.passes.sparsity.sparsify._Job.zero", lambda self, chosen: {})
        apply(Sparsify(method="magnitude", permute=True, min_channels=4), model, "tensorrt")
        moved = [name for name, array in first.items() if not np.array_equal(array, weight(model, name))]
        assert moved, "something was reordered"
        assert relative_error(before, outputs(model, feeds)) < 1e-10


def gated() -> ir.Model:
    """A residual stream of 16 around a gated product of 24, as in language models."""
    rng = np.random.default_rng(5)
    model = ir.from_onnx_text(
        """<ir_version: 8, opset_import: ["": 17]>
        g (float[n,8] x) => (float[n,8] y) {
          r = MatMul(x, embed)
          a = MatMul(r, gate)
          b = MatMul(r, up)
          s = Sigmoid(a)
          h = Mul(s, b)
          d = MatMul(h, down)
          z = Add(d, r)
          y = MatMul(z, head)
        }"""
    )
    sizes = {"embed": (8, 16), "gate": (16, 24), "up": (16, 24), "down": (24, 16), "head": (16, 8)}
    for node in model.graph:
        node.name = node.outputs[0].name
        for value in node.inputs:
            if value is not None and value.name in sizes:
                array = rng.gamma(0.3, size=sizes[value.name]) * rng.choice([-1, 1], sizes[value.name])
                value.const_value = ir.tensor(array.astype(np.float32), name=value.name)
                model.graph.register_initializer(value)
    return model


def test_channels_move_through_residual_sums_and_gates_and_the_function_stays(tmp_path: Path) -> None:
    model = gated()
    feeds = {"x": np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32)}
    before, sites = outputs(model, feeds), find_layers(model)[0]
    first = {name: weight(model, name).copy() for name in ("embed", "gate", "up", "down", "head")}
    assert reorder(model, sites, parse_pattern("2:4"), 0, Spool(tmp_path)) == {"r": "graph input 'x'"}
    assert relative_error(before, outputs(model, feeds)) < 1e-10
    for name, array in first.items():
        assert not np.array_equal(array, weight(model, name))
        assert sorted(array.ravel()) == sorted(weight(model, name).ravel())

    def kept(values: Mapping[str, np.ndarray]) -> float:
        """What 2:4 keeps of the layers that read the two groups of channels."""
        readers = [values[name].T for name in ("gate", "up", "down", "head")]
        return sum(float(np.abs(w)[parse_pattern("2:4").mask(np.abs(w))].sum()) for w in readers)

    assert kept({name: weight(model, name) for name in first}) > 1.03 * kept(first)


def test_a_reordering_that_changes_the_outputs_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """An order that only half of the group follows must not get through."""
    model = gated()
    feeds = {"x": np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32)}
    honest = permute._taken

    def forgetful(value: ir.Value, moved: Any) -> np.ndarray:
        assert value.const_value is not None
        return value.const_value.numpy() if value.name == "up" else honest(value, moved)

    monkeypatch.setattr(permute, "_taken", forgetful)
    with pytest.raises(InternalError, match="changed the outputs"):
        apply(Sparsify(method="magnitude", permute=True, min_channels=4), model, "tensorrt", [feeds])


@given(st.integers(0, 1000))
@settings(max_examples=15)
def test_the_best_order_is_a_permutation_and_never_worse(seed: int) -> None:
    scores = np.random.default_rng(seed).gamma(0.3, size=(20, 16))
    order = best_order(scores, 2, 4, seed)
    assert sorted(order) == list(range(16))

    def kept(columns: np.ndarray) -> float:
        return float(scores[:, columns][parse_pattern("2:4").mask(scores[:, columns])].sum())

    assert kept(order) >= kept(np.arange(16)) - 1e-9


@pytest.mark.parametrize(
    ("text", "share"), [("1:4", 0.25), ("unstructured@0.7", 0.3), ("block8x4@0.5", 0.5), ("3:8", 0.375)]
)
def test_other_patterns(text: str, share: float) -> None:
    mask = parse_pattern(text).mask(np.random.default_rng(0).random((32, 64)))
    assert mask.mean() == pytest.approx(share, abs=0.01)
    if text.startswith("block"):
        blocks = mask.reshape(4, 8, 16, 4).sum(axis=(1, 3))
        assert set(np.unique(blocks)) == {0, 32}


@pytest.mark.parametrize("text", ["4:2", "0:4", "2:4:8", "half", "unstructured@1.5", ""])
def test_an_unknown_pattern_is_one_line_with_the_forms(text: str) -> None:
    with pytest.raises(InputError, match="give 2:4"):
        parse_pattern(text)


@pytest.mark.parametrize(
    ("options", "target", "words"),
    [
        ({}, "onnxruntime", "--target tensorrt"),
        ({"pattern": "1:4"}, "tensorrt", "it has: 2:4"),
        ({"method": "wanda"}, "tensorrt", "--calib"),
        ({"method": "magic"}, "tensorrt", "magnitude, wanda"),
    ],
)
def test_refusals(options: dict[str, Any], target: str, words: str) -> None:
    with pytest.raises(InputError) as caught:
        apply(Sparsify(**options), convolutions(), target)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("type_", ["int8", "fp8", "fp16"])
def test_zeros_survive_quantization(type_: str) -> None:
    model = convolutions()
    feeds = feeds_for(model)
    _, plan = apply(Sparsify(method="refit", min_channels=4), model, "tensorrt", [feeds])
    apply(Quantize(type=type_), model, "tensorrt", [feeds])
    for name, entry in plan.patterns.items():
        stored = f"{name}_fp16" if type_ == "fp16" else name
        assert by_hand(weight(model, stored), entry["axis"]), "the constant that the builder sees"
