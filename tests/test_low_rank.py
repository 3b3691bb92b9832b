"""EoRA: the best path of its rank on the inputs, no dearer than asked, and the same in every runtime's form."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsecc.errors import InputError
from sparsecc.passes.quantize import Quantize
from sparsecc.passes.quantize.weight_only import WeightOnlyOptions, quantize_weights
from sparsecc.passes.sparsity import Sparsify
from sparsecc.passes.weights.linear_layers import find_layers
from sparsecc.passes.weights.low_rank import (
    MULTIPLE,
    Timed,
    eora,
    layer_clock,
    rank_within,
    timed_rank,
)
from sparsecc.plan import Plan
from tests.compilations import compilation
from tests.quantize_models import convolutions, feeds_for, transformer
from tests.test_quantize import Decisions, apply, operators, outputs, relative_error


def layer(seed: int, outputs_: int = 12, inputs: int = 16) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A change of a matrix, inputs of very different sizes that depend on each other, and their X^T X."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((200, inputs)) @ (
        rng.standard_normal((inputs, inputs)) * rng.gamma(0.5, size=inputs)
    )
    return rng.standard_normal((outputs_, inputs)), rows, rows.T @ rows


def truncated(matrix: np.ndarray, rank: int) -> np.ndarray:
    left, size, right = np.linalg.svd(matrix, full_matrices=False)
    return np.asarray((left[:, :rank] * size[:rank]) @ right[:rank])


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.integers(1, 12))
def test_what_is_left_is_the_tail_of_singular_values_and_less_than_plain_svd_leaves(
    seed: int, rank: int
) -> None:
    change, rows, gram = layer(seed)
    path = eora(change, gram, rank)
    assert path.rank == rank
    assert path.up.shape == (12, rank)

    def left(matrix: np.ndarray) -> float:
        return float(np.square(rows @ (change - matrix).T).sum())

    sizes = np.linalg.svd(rows @ change.T, compute_uv=False)
    tail, whole = float(np.square(sizes[rank:]).sum()), float(np.square(sizes).sum())
    assert left(path.matrix()) == pytest.approx(tail, rel=1e-6, abs=1e-9 * whole)
    assert left(path.matrix()) <= left(truncated(change, rank)) * (1 + 1e-9) + 1e-9 * whole


def test_full_rank_restores_exactly_and_equal_inputs_give_the_plain_svd() -> None:
    change, _, gram = layer(0)
    np.testing.assert_allclose(eora(change, gram, 12).matrix(), change, atol=1e-8)
    np.testing.assert_allclose(eora(change, np.eye(16), 5).matrix(), truncated(change, 5), atol=1e-10)


def test_inputs_that_are_always_zero_do_no_harm() -> None:
    change, rows, _ = layer(0)
    rows[:, 3] = 0
    path = eora(change, rows.T @ rows, 4)
    assert np.isfinite(path.matrix()).all()
    assert np.abs(path.down).max() < 1e6


@given(st.integers(8, 5000), st.integers(8, 5000), st.floats(0.01, 0.5), st.sampled_from([1.0, 2.0]))
def test_the_rank_is_the_largest_that_the_share_allows(
    inputs: int, outputs_: int, share: float, speed: float
) -> None:
    rank = rank_within(inputs, outputs_, share, speed)
    work = inputs * outputs_ / speed
    assert rank % MULTIPLE == 0
    assert rank * (inputs + outputs_) <= share * work
    more = rank + MULTIPLE
    assert more > min(inputs, outputs_) or more * (inputs + outputs_) > share * work * (1 - 1e-12)


def test_a_rank_that_takes_too_long_is_halved_and_then_dropped() -> None:
    def clock(rank: int) -> Timed:
        return Timed(1 + rank / 100, 0.5 + rank / 100)

    assert timed_rank(64, 0.2, clock) == (16, "")
    assert timed_rank(8, 0.2, clock) == (8, "")
    assert timed_rank(64, 0.05, clock) == (0, "a path of rank 8 adds 8% to its time")
    slow = timed_rank(16, 0.5, lambda rank: Timed(1.01, 1.3))
    assert slow == (0, "with a path of rank 8 it takes 1.30x the time it takes in float")


def test_the_clock_sees_what_a_path_costs(tmp_path: Path) -> None:
    given_ = compilation(folder=tmp_path)
    plain = WeightOnlyOptions("rtn", 32)
    clock = layer_clock(given_, lambda model: quantize_weights(model, Plan({}), given_, plain))
    site = next(s for s in find_layers(transformer())[0] if s.name == "MatMul_up.weight")
    thin, thick = clock(site, 512, 8), clock(site, 512, 64)
    assert thick.to_layer > thin.to_layer > 0.8
    assert thick.to_float / thick.to_layer == pytest.approx(thin.to_float / thin.to_layer, rel=0.5)


EORA: list[tuple[str, Quantize | Sparsify]] = [
    ("tensorrt", Sparsify(method="wanda", min_channels=4, eora=0.6)),
    ("tensorrt", Sparsify(method="magnitude", min_channels=4, eora=0.6)),
    ("tensorrt", Quantize(type="int4", eora=0.6)),
    ("onnxruntime", Quantize(type="int4", eora=0.6)),
    ("onnxruntime", Quantize(type="int4", algorithm="gptq", eora=0.6)),
]


@pytest.mark.parametrize(("target", "step"), EORA)
@pytest.mark.parametrize("build", [convolutions, transformer])
def test_the_path_is_in_the_model_and_brings_it_nearer(
    target: str, step: Quantize | Sparsify, build: object
) -> None:
    errors, counts = {}, {}
    for share in (0.0, step.eora):
        model = build()  # type: ignore[operator]
        feeds = feeds_for(model, batch=32)
        before = outputs(model, feeds)
        given_ = compilation(target, [feeds], measure=False)
        result = replace(step, eora=share).run(model, Decisions(), given_)  # type: ignore[arg-type]
        errors[share], counts[share] = relative_error(before, outputs(model, feeds)), operators(model)
    facts = result.facts.get("layers") or result.facts["low_rank"]
    with_path = {name: one for name, one in facts.items() if "rank" in one}
    if not with_path:
        assert build is convolutions  # its one product is 32 to 10
        assert isinstance(step, Quantize)
        assert any("no low-rank path: one of rank 8 does more than" in skip.reason for skip in result.remarks)
        return
    if build is transformer:  # what the random convolutions give is a mean over places, which says little
        assert errors[step.eora] < 0.75 * errors[0.0]
    assert counts[step.eora]["Add"] == counts[0.0]["Add"] + len(with_path)
    multiplied = sum(counts[step.eora][op] - counts[0.0][op] for op in ("MatMul", "Conv"))
    assert multiplied == 2 * len(with_path)
    for one in with_path.values():
        assert one["output_error_with_path"] < 0.75 * one["output_error"]


def test_two_products_and_an_add_are_the_matrix_that_they_stand_for() -> None:
    model, dense = convolutions(), convolutions()
    feeds = feeds_for(model)
    apply(Sparsify(method="wanda", min_channels=4, eora=0.6), model, "tensorrt", [feeds])
    numbers = {
        name: value.const_value.numpy()
        for name, value in model.graph.initializers.items()
        if value.const_value
    }
    assert "conv3.weight_down" in numbers
    for name in ("conv2.weight", "conv3.weight", "conv4.weight", "fc.weight"):
        whole = numbers[name]
        if f"{name}_down" in numbers:
            whole = whole + np.einsum(
                "or,rcij->ocij", numbers[f"{name}_up"][:, :, 0, 0], numbers[f"{name}_down"]
            )
        dense.graph.initializers[name].const_value = ir.tensor(whole.astype(np.float32), name=name)
    assert relative_error(outputs(dense, feeds), outputs(model, feeds)) < 1e-10


def test_zeros_stay_where_the_pattern_has_them() -> None:
    model = transformer()
    step = Sparsify(method="wanda", eora=0.6)
    _, plan = apply(step, model, "tensorrt", [feeds_for(model)])
    for name in plan.patterns:
        tensor = model.graph.initializers[name].const_value
        assert tensor is not None
        assert (tensor.numpy() == 0).mean() == 0.5


def test_on_this_machine_a_path_that_costs_more_than_it_may_is_dropped_with_its_time() -> None:
    model = transformer()
    result, _ = apply(Quantize(type="int4", eora=0.3), model, feeds=[feeds_for(model)])
    kept = set(result.facts["low_rank"])
    dropped = {skip.where: skip.reason for skip in result.remarks if "low-rank" in skip.reason}
    assert kept | set(dropped) == set(result.facts["nodes"])
    assert dropped, "64 inputs are too few to add two products within a third of the time"
    for reason in dropped.values():
        assert "of the layer's work" in reason or "time" in reason


def test_it_needs_data() -> None:
    for step, target in ((Quantize(type="int4", eora=0.1), "onnxruntime"), (Sparsify(eora=0.1), "tensorrt")):
        with pytest.raises(InputError, match="eora needs calibration data"):
            apply(step, transformer(), target)


@pytest.mark.parametrize(
    ("step", "words"),
    [
        (Quantize(type="int8", eora=0.1), "eora does nothing for int8: it is for int4"),
        (Quantize(type="int4", size=1e6), "size does nothing for int4: it is for mixed"),
        (Quantize(type="int4", eora=-0.1), "from 0 to 1"),
        (Sparsify(eora=1.5), "from 0 to 1"),
    ],
)
def test_what_a_path_cannot_be_is_one_line(step: Quantize | Sparsify, words: str) -> None:
    model = transformer()
    with pytest.raises(InputError, match=words):
        apply(step, model, "tensorrt", [feeds_for(model)])


def test_the_output_of_the_model_may_be_compensated() -> None:
    """The path of the last layer ends in the graph's output, under its name."""
    model = convolutions()
    sizes = ir.tensor(np.random.default_rng(0).standard_normal((64, 32)).astype(np.float32), name="fc.weight")
    model.graph.initializers["fc.weight"].const_value = sizes
    bias = ir.tensor(np.zeros(64, np.float32), name="fc.bias")
    model.graph.initializers["fc.bias"].const_value = bias
    model.graph.outputs[0].shape = ir.Shape(["n", 64])
    feeds = feeds_for(model)
    given_ = compilation("onnxruntime", [feeds], measure=False)
    Quantize(type="int4", eora=0.6).run(model, Decisions(), given_)  # type: ignore[arg-type]
    assert model.graph.outputs[0].name == "logits"
    producer = model.graph.outputs[0].producer()
    assert producer is not None
    assert producer.op_type == "Add"
    assert outputs(model, feeds).shape == (4, 64)
