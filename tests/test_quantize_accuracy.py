"""What keeps accuracy under 8 bits: each method must do what its paper says, on a case that can show it."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

import sparsecc
from benchmarks.quantization_cases import CASES, shared
from sparsecc.allocators.dynamic_program import additive_allocate
from sparsecc.errors import InputError
from sparsecc.loss.measure import Reference, quality
from sparsecc.loss.parts import Part
from sparsecc.passes.quantize import Quantize
from sparsecc.passes.quantize.activation_ranges import MOST, ValueStats, _count, _widen
from sparsecc.passes.quantize.coordinate_descent import descend, round_by_output, round_row_by_output
from sparsecc.passes.quantize.equalize import equalize_convolutions
from sparsecc.passes.quantize.model_error import Meter
from sparsecc.passes.quantize.rounding import Blocks, gptq, round_to_nearest
from sparsecc.passes.quantize.spec import quantize_weight, weight_scale
from sparsecc.passes.quantize.static import StaticOptions, StaticQuantizer
from sparsecc.passes.weights.input_moments import damped, output_error
from sparsecc.passes.weights.linear_layers import find_layers
from tests.compilations import compilation
from tests.quantize_models import convolutions, feeds_for, transformer
from tests.repair_models import model_of, normal
from tests.test_quantize import apply, outputs, relative_error


def scale_constant(model: ir.Model, name: str, factor: np.ndarray | float) -> None:
    value = model.graph.initializers[name]
    assert value.const_value is not None
    value.const_value = ir.tensor((value.const_value.numpy() * factor).astype(np.float32), name=name)


def int8_error(model: ir.Model, **options: object) -> float:
    feeds = feeds_for(model)
    before = outputs(model, feeds)
    apply(Quantize(type="int8", **options), model, feeds=[feeds])  # type: ignore[arg-type]
    return relative_error(before, outputs(model, feeds))


def outlier_transformer() -> ir.Model:
    """One channel of the first LayerNormalization is a hundred times larger, as in language models."""
    model = transformer()
    factor = np.ones(64)
    factor[5] = 100
    scale_constant(model, "norm1.scale", factor)
    for name in ("query", "key", "value"):
        scale_constant(model, f"{name}.weight", 1 / factor[:, None])
    return model


def test_smoothquant_undoes_activation_outliers_without_new_nodes() -> None:
    plain, smooth = outlier_transformer(), outlier_transformer()
    error = int8_error(plain)
    assert int8_error(smooth, smooth=0.5) < 0.3 * error
    assert len(smooth.graph) == len(plain.graph)


def test_equalisation_is_exact_and_helps_uneven_channels() -> None:
    def uneven() -> ir.Model:
        model = convolutions()
        factor = np.geomspace(0.01, 1, 32)
        scale_constant(model, "conv3.weight", factor[:, None, None, None])
        return model

    model = convolutions()
    feeds = feeds_for(model)
    before = outputs(model, feeds)
    assert equalize_convolutions(model) == []
    assert relative_error(before, outputs(model, feeds)) == 0
    chain = _two_convolutions()
    feeds = feeds_for(chain)
    before = outputs(chain, feeds)
    assert equalize_convolutions(chain) == ["Conv_first.weight"]
    assert relative_error(before, outputs(chain, feeds)) < 1e-9
    per_tensor = int8_error(_two_convolutions(), per_channel=False)
    assert int8_error(_two_convolutions(), per_channel=False, equalize=True) < 0.5 * per_tensor


def _two_convolutions(least: float = 0.01) -> ir.Model:
    rng = np.random.default_rng(0)
    first = rng.standard_normal((16, 3, 3, 3)) * np.geomspace(least, 1, 16)[:, None, None, None]
    second = rng.standard_normal((8, 16, 1, 1)) / np.geomspace(least, 1, 16)[None, :, None, None]
    model = ir.from_onnx_text(
        """<ir_version: 10, opset_import: ["" : 18]>
        net (float[n,3,8,8] image) => (float[n,8,6,6] out)
        <float[16,3,3,3] first, float[8,16,1,1] second> {
            a = Conv(image, first)
            b = Relu(a)
            out = Conv(b, second)
        }"""
    )
    values = {value.name: value for node in model.graph for value in node.inputs if value is not None}
    for name, array in (("first", first), ("second", second)):
        value = values[name]
        value.name = f"{name}.weight"
        value.const_value = ir.tensor(array.astype(np.float32), name=value.name)
        if not value.is_initializer():
            model.graph.register_initializer(value)
    for node in model.graph:
        node.name = f"{node.op_type}_{node.inputs[-1].name if node.inputs[-1] else ''}"
    return model


def test_bias_correction_removes_the_mean_error_of_coarse_weights() -> None:
    def mean_shift(**options: bool) -> float:
        model = convolutions()
        feeds = feeds_for(model, batch=32)
        feeds = {name: array + 1.0 for name, array in feeds.items()}
        before = outputs(model, feeds)
        apply(Quantize(type="int8", per_channel=False, reduce_range=True, **options), model, feeds=[feeds])  # type: ignore[arg-type]
        return float(np.abs((outputs(model, feeds) - before).mean(axis=0)).mean())

    assert mean_shift(correct_bias=True) < 0.6 * mean_shift()


def test_sensitive_layers_stay_float_and_are_named() -> None:
    model = outlier_transformer()
    feeds = feeds_for(model)
    before = outputs(model, feeds)
    result, _ = apply(Quantize(type="int8", max_drop=1e-4), model, feeds=[feeds])
    mixed = result.facts["mixed_precision"]
    assert mixed["error_of_all"] > 1e-4
    assert 0 < len(mixed["left_in_float"]) < 6
    assert relative_error(before, outputs(model, feeds)) <= 1e-4
    assert set(mixed["left_in_float"]) & {skip.where for skip in result.remarks}
    worst = max(mixed["sensitivity"], key=lambda name: mixed["sensitivity"][name])
    assert worst in mixed["left_in_float"]


def test_nothing_stays_float_when_the_budget_is_met() -> None:
    model = transformer()
    result, _ = apply(Quantize(type="int8", max_drop=0.5), model, feeds=[feeds_for(model)])
    assert result.facts["mixed_precision"]["left_in_float"] == []


@pytest.mark.parametrize("seed", range(5))
def test_allocation_is_the_best_of_all(seed: int) -> None:
    rng = np.random.default_rng(seed)
    cost = rng.uniform(1, 10, (6, 3)).tolist()
    loss = (rng.integers(0, 50, (6, 3)) / 100).tolist()
    budget = 1.0
    every = [
        sum(cost[i][o] for i, o in enumerate(options))
        for options in itertools.product(range(3), repeat=6)
        if sum(loss[i][o] for i, o in enumerate(options)) <= budget + 1e-9
    ]
    chosen = additive_allocate(cost, loss, budget)
    assert (chosen is None) == (not every)
    if chosen is not None:
        assert sum(cost[i][o] for i, o in enumerate(chosen)) == pytest.approx(min(every))
        assert sum(loss[i][o] for i, o in enumerate(chosen)) <= budget + 1e-9


def test_a_damaged_output_is_said_aloud() -> None:
    def warnings(**options: bool) -> list[str]:
        model = _two_convolutions(1e-5)
        result, _ = apply(Quantize(type="int8", **options), model, feeds=[feeds_for(model)])  # type: ignore[arg-type]
        return list(result.facts["warnings"])

    assert any("dB: --quantize-option max_drop=0.01" in warning for warning in warnings(per_channel=False))
    assert warnings(per_channel=False, equalize=True) == []


def correlated(rows: int, columns: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A matrix with some zeros, and X^T X of inputs that depend on each other."""
    rng = np.random.default_rng(seed)
    matrix = rng.standard_normal((rows, columns)).astype(np.float32)
    matrix[rng.random(matrix.shape) < 0.2] = 0
    inputs = rng.standard_normal((512, columns)) @ rng.standard_normal((columns, columns))
    return matrix, inputs.T @ inputs


@pytest.mark.parametrize("bits", [4, 8])
def test_descent_loses_less_than_gptq_and_gptq_less_than_nearest(bits: int) -> None:
    matrix, gram = correlated(48, 64)

    def error(blocks: Blocks) -> float:
        return output_error(blocks.real() - matrix, matrix, gram)

    nearest = round_to_nearest(matrix, 32, bits)
    swept = gptq(matrix, gram, 32, bits)
    better = round_by_output(matrix, gram, 32, bits)
    assert error(better) < 0.97 * error(swept) < 0.7 * error(nearest)
    assert (better.real()[matrix == 0] == 0).all()
    assert better.levels.max() < 2**bits


@pytest.mark.parametrize("seed", range(3))
def test_no_single_exchange_improves_what_descent_ends_with(seed: int) -> None:
    matrix, gram = correlated(6, 8, seed)
    fixed = matrix == 0
    start = round_to_nearest(matrix, 8, 3)
    found = descend(matrix, gram, start, fixed, bits=3)
    least = output_error(found.real() - matrix, matrix, damped(gram, 1e-4))
    for row, column, step in itertools.product(range(6), range(8), (-1, 1)):
        level = int(found.levels[row, column]) + step
        if not fixed[row, column] and 0 <= level < 8:
            other = replace(found, levels=found.levels.copy())
            other.levels[row, column] = level
            assert output_error(other.real() - matrix, matrix, damped(gram, 1e-4)) >= least * (1 - 1e-9)


@pytest.mark.parametrize("limit", [63, 127])
def test_rows_rounded_by_output_lie_on_the_grid_that_the_lowering_finds(limit: int) -> None:
    matrix, gram = correlated(24, 36)
    rounded = round_row_by_output(matrix, gram, limit)
    scale = weight_scale(rounded, 0, limit=limit)
    again = quantize_weight(rounded, scale, 0, limit=limit) * scale[:, None]
    np.testing.assert_allclose(again, rounded, rtol=1e-6, atol=0)
    nearest = round_to_nearest(matrix, 36, (limit + 1).bit_length(), symmetric=True).real()
    exact = output_error(nearest - matrix, matrix, gram)
    assert output_error(rounded - matrix, matrix, gram) < 0.75 * exact
    assert (rounded[matrix == 0] == 0).all()


@pytest.mark.parametrize("target", ["onnxruntime", "tensorrt"])
def test_int8_rounded_by_output_loses_less_and_takes_the_mean_from_the_bias(target: str) -> None:
    """On seven bits, where weights and not activations lose most; the model is measured with both lowerings."""

    def error(**options: object) -> float:
        model = convolutions()
        feeds = feeds_for(model, batch=16)
        before = outputs(model, feeds)
        apply(Quantize(type="int8", reduce_range=True, **options), model, target, [feeds])  # type: ignore[arg-type]
        return relative_error(before, outputs(model, feeds))

    if target == "onnxruntime":
        assert error(algorithm="gptq") < 0.8 * error()
        assert error(algorithm="gptq", correct_bias=True) < 0.8 * error()
    else:
        assert error(algorithm="gptq") < error()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"type": "int8", "algorithm": "awq"}, "no rounding 'awq' for int8: it is one of rtn, gptq"),
        (
            {"type": "int8", "algorithm": "gptq", "per_channel": False},
            "no rounding 'gptq' for int8 per tensor",
        ),
    ],
)
def test_a_rounding_that_a_type_lacks_is_refused(options: dict[str, Any], words: str) -> None:
    model = convolutions()
    with pytest.raises(InputError, match=words):
        apply(Quantize(**options), model, feeds=[feeds_for(model)])


@pytest.mark.slow
@pytest.mark.skipif(not shared().is_dir(), reason="the shared materials are not here: set SPARSECC_SHARED")
def test_sensitive_layers_of_a_trained_network_stay_float_and_are_named() -> None:
    """ResNet-20 on CIFAR-10: within the limit on data it was not chosen on, with as few layers in float."""
    case = CASES["resnet20"]()
    model = ir.load(case.path)
    before = np.concatenate([outputs(model, feeds) for feeds in case.test])
    result, _ = apply(Quantize(type="int8", max_drop=5e-4), model, feeds=case.calibration)
    mixed = result.facts["mixed_precision"]
    assert mixed["error_of_all"] > 5e-4 >= mixed["error"]
    assert 0 < len(mixed["left_in_float"]) <= 8
    assert set(mixed["left_in_float"]) <= {skip.where for skip in result.remarks}
    after = np.concatenate([outputs(model, feeds) for feeds in case.test])
    assert relative_error(before, after) < 7e-4
    assert (after.argmax(axis=1) == case.labels).mean() > 0.905


def test_a_layer_alone_in_int8_behind_moved_numbers_has_their_range() -> None:
    """In the whole network the Gemm's input shares the scale of the pooled channels before the Flatten."""
    model = convolutions()
    feeds = feeds_for(model)
    before = outputs(model, feeds)
    sites = find_layers(model)[0]
    (last,) = (site.name for site in sites if site.op_type == "Gemm")
    others = tuple(site.name for site in sites if site.name != last)
    quantizer = StaticQuantizer(model, compilation("onnxruntime", [feeds]), StaticOptions())
    assert not quantizer.whole.values.keys() >= quantizer.decide(model, others).values.keys()
    quantizer.lower(model, others)
    assert 0 < relative_error(before, outputs(model, feeds)) < 1e-3


def test_scores_beside_boxes_keep_a_scale_of_their_own_where_nothing_integer_reads_them() -> None:
    """Both come out of integer kernels; with one scale for all, scores in 0..1 would be one level of 200 pixels."""
    rng = np.random.default_rng(0)
    arrays = {
        "w0": rng.normal(0, 0.2, (16, 3, 3, 3)), "wb": rng.normal(0, 5, (4, 16, 1, 1)),
        "ws": rng.normal(0, 0.02, (8, 16, 1, 1)),
    }  # fmt: skip
    text = """detector (float[2,3,16,16] x) => (float[2,12,14,14] y) {
        h = Conv(x, w0) r = Relu(h) b = Conv(r, wb) s = Conv(r, ws) y = Concat<axis=1>(b, s) }"""
    model = model_of(text, {name: array.astype(np.float32) for name, array in arrays.items()})
    for number, node in enumerate(model.graph):
        node.name = f"{node.op_type}_{number}"
    feeds = {"x": rng.normal(0, 1, (2, 3, 16, 16)).astype(np.float32)}
    before = outputs(model, feeds)
    result, _ = apply(Quantize(type="int8"), model, feeds=[feeds])
    after = outputs(model, feeds)
    parts = Part("y", ((1, 0, 4),)), Part("y", ((1, 4, 12),))
    losses = Reference([{"y": before}], parts).losses([{"y": after}])
    assert quality(losses.worst[1]) > 25
    assert set(result.facts["output_quality_db"]) == {"y[:, 0:4]", "y[:, 4:12]"}
    assert ("Concat_4", True) in [(skip.where, "one scale" in skip.reason) for skip in result.remarks]


def test_ranges_are_judged_on_the_values_of_all_samples() -> None:
    """Only the last batch is clipped by a range that the first ones set; what is kept of values is of all alike."""
    batches = [np.full(5000, 1.0, np.float32)] * 60 + [np.full(5000, 9.0, np.float32)]
    seen = ValueStats()
    for batch in batches:
        _widen(seen, batch)
    for batch in batches:
        _count(seen, batch)
    assert seen.clipped(0.0, 5.0) == pytest.approx(1 / 61)
    assert seen.sample.size <= MOST
    assert float((seen.sample == 9.0).mean()) == pytest.approx(1 / 61, rel=0.2)


def test_where_a_convolution_stays_in_float_the_sum_after_it_may_be_in_float_too(tmp_path: Path) -> None:
    """TensorRT's residual operand would be the other one then, whose range nobody saw."""
    model = Path(__file__).resolve().parent.parent / "models" / "digits_resnet.onnx"
    samples = np.random.default_rng(0).standard_normal((16, 1, 1, 16, 16)).astype(np.float32)
    given: dict[str, Any] = {
        "target": "tensorrt",
        "emit": "onnx",
        "quantize": "int8",
        "measure": False,
        "next_steps": False,
    }
    drop = {"max_drop": "1e-5"}
    made = sparsecc.compile(
        model, **given, calib=list(samples), quantize_options=drop, output=tmp_path / "out"
    )
    assert made.report["verification"]["status"] == "proved"


@pytest.mark.parametrize("type_", ["int8", "int4"])
@pytest.mark.parametrize("opset", [7, 9, 13])
def test_halves_of_old_opsets_stay_halves_where_a_layer_stays_in_float(
    tmp_path: Path, opset: int, type_: str
) -> None:
    """8 bits need a newer opset, whose conversion makes every value of the graph anew."""
    random, names = np.random.default_rng(0), ("first", "second", "third")
    shapes = [(32, 3, 3, 3), (32, 32, 3, 3), (32, 32, 3, 3)]
    weights = [(random.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype("f2") for shape in shapes]
    graph = helper.make_graph(
        [
            helper.make_node("Conv", [given, f"{name}.weight"], [name], name=name)
            for given, name in zip(("x", *names), names, strict=False)
        ],
        "halves",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT16, [1, 3, 16, 16])],
        [helper.make_tensor_value_info("third", TensorProto.FLOAT16, None)],
        [numpy_helper.from_array(w, f"{name}.weight") for name, w in zip(names, weights, strict=True)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=7)
    onnx.save(model, tmp_path / "halves.onnx")
    made = sparsecc.compile(
        tmp_path / "halves.onnx",
        output=tmp_path / "out",
        ratio=0.0,
        quantize=type_,
        quantize_options={"exclude": "second"},
        calib=[{"x": random.standard_normal((1, 3, 16, 16)).astype("f2")} for _ in range(16)],
        measure=False,
    )
    assert made.report["fidelity"]["quality_db"] > 15
    kept = [
        tensor
        for tensor in onnx.load(tmp_path / "out" / "model.onnx").graph.initializer
        if len(tensor.dims) == 4
    ]
    assert TensorProto.FLOAT16 in {tensor.data_type for tensor in kept if tensor.dims[:2] == [32, 32]}
    assert TensorProto.FLOAT not in {tensor.data_type for tensor in kept}


def test_errors_are_relative_to_what_each_class_varies_by() -> None:
    """Four samples give a class no mean of its own: how far classes lie apart would count as what varies."""
    text, weights = "(float[n,8] x) => (float[n,5] y) { y = Gemm(x, w, b) }", {"w": normal(8, 5)}
    weights["b"] = 100 * np.arange(5, dtype=np.float32)
    feeds = [{"x": normal(1, 8, seed=seed)} for seed in range(24)]
    meter = Meter(model_of(f"g {text}", weights), compilation(feeds=feeds))
    changed = model_of(f"g {text}", weights | {"w": weights["w"] + 0.1 * normal(8, 5, seed=99)})
    assert 0.002 < meter.error(changed) < 0.05
