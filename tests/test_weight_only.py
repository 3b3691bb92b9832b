"""Weights in blocks of 4 or 8 bits, and how they are rounded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsecc.passes.quantize import Quantize
from sparsecc.passes.quantize.rounding import Blocks, gptq, round_by_search, round_to_nearest
from tests.quantize_models import feeds_for, transformer
from tests.test_quantize import apply, kernels, operators, outputs, relative_error


@pytest.mark.parametrize("target", ["onnxruntime", "onnx"])
def test_weights_alone_in_8_bits(target: str, tmp_path: Path) -> None:
    model = transformer()
    feeds = feeds_for(model)
    before = outputs(model, feeds)
    result, plan = apply(Quantize(type="int8-weights"), model, target, feeds=[feeds])
    assert len(result.facts["nodes"]) == 6
    assert plan.quantization["query.weight"]["type"] == "int8"
    form = "MatMulNBits" if target == "onnxruntime" else "DequantizeLinear"
    assert operators(model)[form] == 6
    stored = [
        value
        for value in model.graph.initializers.values()
        if value.dtype in (ir.DataType.INT8, ir.DataType.UINT8)
    ]
    assert (
        sum(value.const_value.nbytes for value in stored if value.const_value) == 4 * 64 * 64 + 2 * 64 * 256
    )
    assert relative_error(before, outputs(model, feeds)) < 1e-4


@pytest.mark.parametrize("symmetric", [False, True])
@settings(max_examples=30, deadline=None)
@given(st.integers(0, 999), st.sampled_from([16, 32, 40]))
def test_scales_found_by_search_never_lose_more_than_those_that_cover(
    symmetric: bool, seed: int, columns: int
) -> None:
    rng = np.random.default_rng(seed)
    matrix = rng.standard_t(4, (8, columns)).astype(np.float32)
    weight = (
        np.abs(matrix)
        + np.repeat(
            [
                np.sqrt(
                    np.mean(
                        np.square(np.pad(matrix, ((0, 0), (0, -columns % 16)))).reshape(8, -1, 16), axis=2
                    )
                )
            ],
            16,
            axis=2,
        )[0][:, :columns]
    )

    def loss(rounded: Blocks) -> float:
        return float((weight * np.square(rounded.real() - matrix)).sum())

    searched = round_by_search(matrix, 16, symmetric=symmetric)
    assert searched.levels.max() <= 15
    assert loss(searched) <= loss(round_to_nearest(matrix, 16, symmetric=symmetric)) * 1.02


def test_search_beats_rounding_to_nearest_on_gaussian_weights() -> None:
    matrix = np.random.default_rng(0).standard_normal((64, 256)).astype(np.float32)
    nearest, searched = (
        how(matrix, 32, symmetric=True).real() for how in (round_to_nearest, round_by_search)
    )
    assert relative_error(matrix, searched) < 0.85 * relative_error(matrix, nearest)


@pytest.mark.parametrize("algorithm", ["rtn", "kquant", "gptq", "awq"])
def test_int4_weights(algorithm: str, tmp_path: Path) -> None:
    model = transformer()
    feeds = feeds_for(model)
    before = outputs(model, feeds)
    _, plan = apply(Quantize(type="int4", algorithm=algorithm), model, feeds=[feeds])
    assert kernels(model, tmp_path)["MatMulNBits"] == 6
    assert plan.quantization["query.weight"]["block"] == 32
    assert relative_error(before, outputs(model, feeds)) < 0.1


def test_gptq_beats_rounding_to_nearest_on_correlated_inputs() -> None:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((512, 12)) @ rng.standard_normal((12, 64)) + 0.1 * rng.standard_normal(
        (512, 64)
    )
    gram, weight = rows.T @ rows, rng.standard_normal((32, 64))

    def error(rounded: np.ndarray) -> float:
        return float(np.square(rows @ (rounded - weight).T).sum())

    nearest = error(round_to_nearest(weight, 32).real())
    assert error(gptq(weight, gram, 32).real()) < 0.6 * nearest
