"""What calibration says of layers one after the other: within its memory, in as many passes as that takes."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest

from sparsecc.calibrate import moments as sums
from sparsecc.compilation import Compilation
from sparsecc.errors import InputError
from sparsecc.passes.quantize import Quantize
from sparsecc.passes.sparsity import Sparsify
from sparsecc.passes.weights.input_moments import InputMoments, walk_inputs
from sparsecc.passes.weights.linear_layers import find_layers
from tests.compilations import compilation
from tests.quantize_models import convolutions, feeds_for
from tests.test_quantize import Decisions, outputs


def chain(layers: int, width: int) -> ir.Model:
    """Matrix products behind each other."""
    rng = np.random.default_rng(0)
    lines = [f"h{i + 1} = MatMul(h{i}, w{i})" for i in range(layers)]
    model = ir.from_onnx_text(
        f"""<ir_version: 10, opset_import: ["" : 18]>
        net (float[n,{width}] h0) => (float[n,{width}] h{layers}) {{ {chr(10).join(lines)} }}"""
    )
    for i, node in enumerate(list(model.graph)):
        weight = node.inputs[1]
        assert weight is not None
        array = rng.standard_normal((width, width)) / np.sqrt(width)
        weight.const_value = ir.tensor(array.astype(np.float32), name=f"w{i}")
        model.graph.register_initializer(weight)
        node.name = f"product{i}"
    return model


def moments(model: ir.Model, given: Compilation) -> dict[str, InputMoments]:
    """Copies, as blocks on disk go with the walk."""
    found = {}
    for inputs in walk_inputs(model, find_layers(model)[0], given):
        seen = inputs.moments()
        blocks = tuple(replace(block, gram=np.array(block.gram)) for block in seen.blocks)
        found[inputs.layers[0].name] = replace(seen, blocks=blocks)
    return found


def test_a_small_memory_takes_more_passes_and_finds_the_same() -> None:
    model, rng = chain(3, 320), np.random.default_rng(1)
    feeds = [{"h0": rng.standard_normal((40, 320)).astype(np.float32)} for _ in range(3)]
    whole = moments(model, compilation(feeds=feeds))
    split = moments(model, compilation(feeds=feeds, working_memory=1 << 20))
    assert len(split) == 3
    for name, seen in split.items():
        assert [b.columns for b in seen.blocks] == [slice(0, 128), slice(128, 256), slice(256, 320)], name
        assert whole[name].is_whole
        np.testing.assert_allclose(seen.mean, whole[name].mean, atol=1e-9)
        np.testing.assert_allclose(seen.root_mean_square, whole[name].root_mean_square, rtol=1e-6)
        for block in seen.blocks:
            own = whole[name].blocks[0].gram[:, block.columns, block.columns]
            np.testing.assert_allclose(block.gram, own, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("step", [
    Quantize(type="int4", algorithm="gptq"), Quantize(type="int4", algorithm="awq"),
    Quantize(type="int8", algorithm="gptq", correct_bias=True), Sparsify(pattern="2:4", method="auto"),
])  # fmt: skip
def test_values_that_wait_on_disk_change_nothing(step: Quantize | Sparsify) -> None:
    """Here every layer's X^T X fits the memory, but the values between layers do not."""
    results = []
    for memory in (1 << 30, 12 << 20):
        model = convolutions()
        feeds = feeds_for(model, batch=64)
        target = "tensorrt" if isinstance(step, Sparsify) else "onnxruntime"
        given = compilation(target, [feeds, feeds_for(model, batch=64, seed=2)], working_memory=memory)
        step.run(model, Decisions(), given)  # type: ignore[arg-type]
        results.append(outputs(model, feeds))
    np.testing.assert_array_equal(results[0], results[1])


def test_the_memory_does_not_grow_with_the_model() -> None:
    def peak(layers: int) -> int:
        model = chain(layers, 256)
        rng = np.random.default_rng(1)
        feeds = [{"h0": rng.standard_normal((1000, 256)).astype(np.float32)} for _ in range(2)]
        given = compilation(feeds=feeds, working_memory=16 << 20)
        tracemalloc.start()
        for inputs in walk_inputs(model, find_layers(model)[0], given):
            inputs.moments()
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    few, many = peak(3), peak(20)
    assert many < 1.1 * few + (1 << 20), "one X^T X more is half of a MiB"
    assert 1 << 20 < many < 16 << 20


def test_wide_layers_are_rounded_by_the_blocks_that_fit() -> None:
    model, rng = chain(2, 320), np.random.default_rng(1)
    places = np.arange(320)
    mixing = np.exp(-np.abs(places[:, None] - places) / 8).astype(np.float32)  # neighbours are alike
    feeds = {"h0": rng.standard_normal((400, 320)).astype(np.float32) @ mixing}
    small = compilation(feeds=[feeds], working_memory=1 << 20)
    exact, errors = outputs(model, feeds), {}
    for algorithm in ("rtn", "gptq"):
        rounded = model.clone()
        Quantize(type="int4", algorithm=algorithm).run(rounded, Decisions(), small)  # type: ignore[arg-type]
        errors[algorithm] = float(np.square(outputs(rounded, feeds) - exact).sum())
    assert errors["gptq"] < 0.9 * errors["rtn"]
    result = Quantize(type="int8", algorithm="gptq").run(model, Decisions(), small)  # type: ignore[arg-type]
    assert [skip.reason for skip in result.remarks] == [
        "too many inputs for --working-memory: rounded to nearest"
    ] * 2


def test_an_infinite_value_is_named() -> None:
    model = chain(2, 32)
    given = compilation(feeds=[{"h0": np.full((4, 32), np.inf, np.float32)}])
    with pytest.raises(InputError, match="value 'h0' holds NaN or infinity"):
        moments(model, given)


def test_rows_of_small_batches_are_multiplied_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sums, "_TOGETHER", 10)
    rows = np.random.default_rng(0).standard_normal((2, 23, 3)).astype(np.float32)
    odd = np.arange(23) % 2 == 1
    parts = [(rows[:, i : i + 4], odd[i : i + 4]) for i in range(0, 23, 4)]
    joined = list(sums.together(parts, (1, 0)))
    assert [part[0].shape[1] for part in joined] == [12, 11]
    np.testing.assert_array_equal(np.concatenate([part[0] for part in joined], 1), rows)
    np.testing.assert_array_equal(np.concatenate([part[1] for part in joined]), odd)
