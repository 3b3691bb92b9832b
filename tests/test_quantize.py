"""Quantization: what each type writes, what the runtimes make of it, and what is refused."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsecc.errors import InputError
from sparsecc.ir.constants import share_equal
from sparsecc.ir.save import write
from sparsecc.passes.base import PassResult
from sparsecc.passes.quantize import Quantize
from sparsecc.passes.quantize.activation_ranges import METHODS
from sparsecc.passes.quantize.fold_batch_norms import fold_batch_norms
from sparsecc.passes.quantize.spec import fake_quantize, scale_of_range
from sparsecc.runtime.numerics import decibels
from sparsecc.runtime.session import open_session
from tests.compilations import compilation
from tests.quantize_models import convolutions, feeds_for, transformer, weighted


@dataclass
class Decisions:
    """The part of a plan that these passes write."""

    patterns: dict[str, dict[str, Any]] = field(default_factory=dict)
    quantization: dict[str, dict[str, Any]] = field(default_factory=dict)


def apply(
    step: Any, model: ir.Model, target: str = "onnxruntime", feeds: list[dict[str, np.ndarray]] | None = None
) -> tuple[PassResult, Decisions]:
    plan = Decisions()
    return step.run(model, plan, compilation(target, feeds)), plan


def outputs(model: ir.Model, feeds: dict[str, np.ndarray], level: str = "all") -> np.ndarray:
    return next(iter(open_session(model, level=level).run(feeds).values()))


def kernels(model: ir.Model, folder: Path) -> Counter[str]:
    """Operators of the graph that ONNX Runtime really runs."""
    open_session(model, optimized=folder / "optimized.onnx")
    return Counter(node.op_type for node in ir.load(folder / "optimized.onnx").graph)


def relative_error(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.square(a - b).sum() / np.square(a).sum())


def operators(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


@pytest.fixture
def cnn() -> tuple[ir.Model, dict[str, np.ndarray]]:
    model = convolutions()
    return model, feeds_for(model)


@pytest.mark.parametrize("method", METHODS)
def test_every_convolution_of_a_residual_network_runs_in_int8(
    cnn: tuple[ir.Model, dict[str, np.ndarray]], tmp_path: Path, method: str
) -> None:
    model, feeds = cnn
    before = outputs(model, feeds)
    result, plan = apply(Quantize(type="int8", method=method), model, feeds=[feeds])
    census = kernels(model, tmp_path)
    assert (census["QLinearConv"], census["Conv"], census["FusedConv"]) == (4, 0, 0)
    assert census["QGemm"] == 1
    assert census["QLinearAdd"] == 1
    assert census["Relu"] == census["Clip"] == 0
    assert relative_error(before, outputs(model, feeds)) < 0.02
    assert len(result.facts["nodes"]) == 5
    assert 20 < result.facts["output_quality_db"]["logits"] < 60
    assert plan.quantization["image"]["type"] == "uint8"
    assert plan.quantization["conv1.weight"]["granularity"] == "channel"
    biases = {name for name in model.graph.initializers if ".bias" in name and not name.endswith("_scale")}
    assert biases == {f"conv{i}.bias" for i in (1, 2, 3, 4)} | {"fc.bias_int32"}


def test_matrix_products_of_a_transformer_run_in_int8_and_attention_stays_float(tmp_path: Path) -> None:
    model = transformer()
    feeds = feeds_for(model)
    before = outputs(model, feeds)
    result, _ = apply(Quantize(type="int8"), model, feeds=[feeds])
    census = kernels(model, tmp_path)
    assert census["MatMulIntegerToFloat"] == 6
    assert census["MatMul"] + census["FusedMatMul"] == 2
    assert relative_error(before, outputs(model, feeds)) < 0.01
    assert {skip.reason for skip in result.remarks} == {"both operands are activations"}


def test_a_standard_qdq_graph_also_runs_in_int8(tmp_path: Path) -> None:
    model = transformer()
    feeds = feeds_for(model)
    apply(Quantize(type="int8", scheme="qdq"), model, "onnx", [feeds])
    assert all(node.domain == "" for node in model.graph)
    assert kernels(model, tmp_path)["QLinearMatMul"] == 6


def test_the_arm_lowering_has_int8_activations(cnn: tuple[ir.Model, dict[str, np.ndarray]]) -> None:
    model, feeds = cnn
    before = outputs(model, feeds)
    _, plan = apply(Quantize(type="int8"), model, "onnxruntime-arm64", [feeds])
    types = {value.const_value.dtype for value in model.graph.initializers.values() if value.const_value}
    assert ir.DataType.UINT8 not in types
    assert plan.quantization["image"]["type"] == "int8"
    assert relative_error(before, outputs(model, feeds)) < 0.02


def test_integer_operators_when_asked(cnn: tuple[ir.Model, dict[str, np.ndarray]]) -> None:
    model, feeds = cnn
    before = outputs(model, feeds)
    apply(Quantize(type="int8", scheme="qoperator"), model, feeds=[feeds])
    assert operators(model)["QLinearConv"] == 4
    assert relative_error(before, outputs(model, feeds)) < 0.02


def test_zero_weights_stay_exactly_zero(cnn: tuple[ir.Model, dict[str, np.ndarray]]) -> None:
    model, feeds = cnn
    weight = model.graph.initializers["conv2.weight"]
    assert weight.const_value is not None
    array = weight.const_value.numpy().copy()
    array[:, ::2] = 0
    array[3] = 0
    weight.const_value = ir.tensor(array, name="conv2.weight")
    apply(Quantize(type="int8"), model, feeds=[feeds])
    stored = model.graph.initializers["conv2.weight_int8"].const_value
    assert stored is not None
    assert not stored.numpy()[array == 0].any()
    assert np.count_nonzero(stored.numpy()) > 0.9 * np.count_nonzero(array)


@given(st.floats(-1e4, 1e4), st.floats(-1e4, 1e4), st.sampled_from(["int8", "uint8"]), st.booleans())
def test_zero_is_always_a_level_and_the_range_is_covered(
    a: float, b: float, type_: str, symmetric: bool
) -> None:
    low, high = min(a, b), max(a, b)
    scale = scale_of_range(low, high, type_, symmetric=symmetric)
    step = float(scale.scale)
    ends = np.array([0.0, low, high], np.float32)
    restored = fake_quantize(ends, scale)
    assert restored[0] == 0
    assert np.abs(restored - ends).max() <= 0.51 * step + 1e-6


def test_tensorrt_form_has_no_zero_points_no_quantized_bias_and_float_weights(
    cnn: tuple[ir.Model, dict[str, np.ndarray]],
) -> None:
    model, feeds = cnn
    before = outputs(model, feeds)
    result, _ = apply(Quantize(type="int8"), model, "tensorrt", [feeds])
    for node in model.graph:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            zero = node.inputs[2]
            assert zero is not None and zero.const_value is not None  # noqa: PT018
            assert zero.const_value.dtype == ir.DataType.INT8
            assert not zero.const_value.numpy().any()
        if node.op_type == "Conv" and "conv2" in (node.name or ""):
            restored = node.inputs[1]
            assert restored is not None
            quantized = restored.producer()
            assert quantized is not None and quantized.inputs[0] is not None  # noqa: PT018
            source = quantized.inputs[0].producer()
            assert source is not None and source.inputs[0] is not None  # noqa: PT018
            assert source.inputs[0].name == "conv2.weight"
            assert node.inputs[2] is not None
            assert node.inputs[2].is_initializer()
        assert node.op_type != "Relu" or node.outputs[0].name != "image"
    assert any("no integer tactic" in skip.reason for skip in result.remarks), "conv1 has 3 channels"
    assert relative_error(before, outputs(model, feeds)) < 0.02


def test_dynamic_int8_needs_no_data_and_leaves_convolutions(tmp_path: Path) -> None:
    model = transformer()
    feeds = feeds_for(model)
    before = outputs(model, feeds)
    apply(Quantize(type="int8-dynamic"), model)
    census = kernels(model, tmp_path)
    assert census["MatMulIntegerToFloat"] + census["DynamicQuantizeMatMul"] == 6
    assert relative_error(before, outputs(model, feeds)) < 0.01
    convs = convolutions()
    result, _ = apply(Quantize(type="int8-dynamic"), convs)
    assert operators(convs)["Conv"] == 4
    assert sum("convolution" in skip.reason for skip in result.remarks) == 4


@pytest.mark.parametrize("build", [convolutions, transformer])
@pytest.mark.parametrize("type_", ["fp16", "bf16"])
def test_half_is_complete(build: Any, type_: str) -> None:
    model = build()
    feeds = feeds_for(model)
    before = outputs(model, feeds)
    result, _ = apply(Quantize(type=type_), model, "onnx")
    half = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}[type_]
    for node in model.graph:
        kinds = {value.dtype for value in node.inputs if value is not None and value.dtype is not None}
        assert not {ir.DataType.FLOAT, half} <= kinds, f"{node.name} mixes float and half"
        if node.op_type in ("Conv", "MatMul", "Gemm"):
            assert node.outputs[0].dtype == half
    assert model.graph.inputs[0].dtype != half
    assert model.graph.outputs[0].dtype == ir.DataType.FLOAT
    assert result.facts["casts"] >= 1
    if type_ == "fp16":
        assert relative_error(before, outputs(model, feeds)) < 1e-4


def test_fp16_keeps_nodes_in_float_where_values_overflow() -> None:
    model = convolutions()
    feeds = {name: 1e5 * array for name, array in feeds_for(model).items()}
    before = outputs(model, feeds)
    apply(Quantize(type="fp16"), model, feeds=[feeds])
    after = outputs(model, feeds)
    assert np.isfinite(after).all()
    assert relative_error(before, after) < 1e-4


def test_a_model_without_float_layers_is_left_alone() -> None:
    model = transformer()
    feeds = feeds_for(model)
    apply(Quantize(type="int4"), model, feeds=[feeds])
    count = len(model.graph)
    result, _ = apply(Quantize(type="int8"), model, feeds=[feeds])
    assert len(model.graph) == count
    assert "already quantized" in result.remarks[0].reason


@pytest.mark.parametrize(
    ("type_", "target", "words"),
    [
        ("int8", "onnxruntime", "--calib synthetic"),
        ("fp8", "onnxruntime", "fp16, int4, int8, int8-dynamic"),
        ("int8-dynamic", "tensorrt", "bf16, fp16, fp8, int4, int8"),
    ],
)
def test_refusals_are_one_line_that_says_what_to_do(type_: str, target: str, words: str) -> None:
    with pytest.raises(InputError) as caught:
        apply(Quantize(type=type_), convolutions(), target)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_nan_activations_are_refused() -> None:
    model = convolutions()
    feeds = {name: np.full_like(array, np.nan) for name, array in feeds_for(model).items()}
    with pytest.raises(InputError, match="NaN"):
        apply(Quantize(type="int8"), model, feeds=[feeds])


def test_a_saturated_calibration_set_is_reported(cnn: tuple[ir.Model, dict[str, np.ndarray]]) -> None:
    model, feeds = cnn
    clipped = {name: np.clip(array, -0.3, 0.3) for name, array in feeds.items()}
    result, _ = apply(Quantize(type="int8"), model, feeds=[clipped])
    assert any("saturates" in warning for warning in result.facts["warnings"])
    fine, _ = apply(Quantize(type="int8"), convolutions(), feeds=[feeds])
    assert fine.facts["warnings"] == []


def test_batch_norms_fold_exactly() -> None:
    model = convolutions(batch_norm=True)
    feeds, names = feeds_for(model), set(model.graph.initializers)
    before = outputs(model, feeds, "none")
    assert fold_batch_norms(model) == (2, [])
    assert operators(model)["BatchNormalization"] == 0
    assert {node.inputs[1].name for node in model.graph if node.op_type == "Conv" and node.inputs[1]} <= names
    assert relative_error(before, outputs(model, feeds, "none")) < 1e-10


@pytest.mark.parametrize("type_", ["int8", "int8-dynamic"])
def test_no_batch_norm_stays_between_layers_of_eight_bits(type_: str) -> None:
    model = convolutions(batch_norm=True)
    result, _ = apply(Quantize(type=type_), model, feeds=[feeds_for(model)])
    assert operators(model)["BatchNormalization"] == 0
    assert result.facts["folded_batch_norms"] == 2


def test_a_batch_norm_that_cannot_be_folded_is_told() -> None:
    model = convolutions(batch_norm=True)
    first = next(node for node in model.graph if node.op_type == "BatchNormalization")
    assert first.inputs[0] is not None
    model.graph.outputs.append(first.inputs[0])
    folded, (left,) = fold_batch_norms(model)
    assert (folded, left.where) == (1, first.name)
    assert "the convolution's output is read elsewhere too" in left.reason


@pytest.mark.parametrize("type_", ["int8", "int4", "int8-dynamic"])
@pytest.mark.parametrize("scale", [0.0, 1e3], ids=["silent", "loud"])
def test_values_that_are_always_zero_or_huge_leave_a_report_that_can_be_written(
    type_: str, scale: float
) -> None:
    model = transformer()
    for name, value in model.graph.initializers.items():
        if value.const_value is not None and value.const_value.dtype == ir.DataType.FLOAT:
            value.const_value = ir.tensor(value.const_value.numpy() * np.float32(scale), name=name)
    result, _ = apply(Quantize(type=type_), model, feeds=[feeds_for(model)])
    json.dumps(result.facts, allow_nan=False)


@pytest.mark.parametrize(
    ("signal", "noise", "expected"),
    [
        (1, 0, 200),
        (0, 0, 200),
        (100, 1, 20),
        (0, 1, -200),
        (1, math.nan, -200),
        (1, math.inf, -200),
        (1e300, 1e-300, 200),
    ],
)
def test_decibels_are_numbers(signal: float, noise: float, expected: float) -> None:
    assert decibels(signal, noise) == pytest.approx(expected)


def test_the_same_input_gives_the_same_bytes() -> None:
    def made() -> bytes:
        model = convolutions()
        apply(Quantize(type="int8", method="mse"), model, feeds=[feeds_for(model)])
        return bytes(ir.to_proto(model).SerializeToString(deterministic=True))

    assert made() == made()


@settings(max_examples=15)
@given(st.integers(1, 3), st.sampled_from([1, 2, 4]), st.booleans())
def test_int8_of_any_convolution_is_close(kernel: int, group: int, bias: bool) -> None:
    model = convolutions(kernel=kernel, group=group, bias=bias)
    feeds = feeds_for(model)
    before = outputs(model, feeds)
    apply(Quantize(type="int8"), model, feeds=[feeds])
    assert relative_error(before, outputs(model, feeds)) < 0.03


@pytest.mark.parametrize("type_", ["int8", "int8-dynamic", "int4"])
def test_factors_of_a_gemm_fold_into_its_constants(type_: str) -> None:
    """The weight is read elsewhere too, and stays what it was there; a bias that is computed keeps its beta."""
    model = weighted(
        """g (float[4,64] x, WEIGHTS) => (float[4,64] y, float[4,64] z, float[4,64] u) {
            y = Gemm<alpha = 0.5, beta = 3.0>(x, w, b)
            z = MatMul(x, w)
            c = ReduceMean<keepdims = 1>(x)
            u = Gemm<beta = 2.0>(x, w, c)
        }""",
        {"w": (64, 64), "b": (64,)},
    )
    feeds = feeds_for(model)
    before = open_session(model).run(feeds)
    result, _ = apply(Quantize(type=type_), model, feeds=[feeds])
    after = open_session(model).run(feeds)
    assert len(result.facts["nodes"]) == 2
    for name, exact in before.items():
        assert relative_error(exact, after[name]) < (2e-2 if type_ == "int4" else 1e-3)


def test_equal_constants_are_stored_once_and_no_shape_twice(tmp_path: Path) -> None:
    """Scales, zero points and what an exporter wrote twice; types of constants stand beside their numbers anyway."""
    model = weighted(
        "g (float[1,16,8,8] x, WEIGHTS) => (float a, float b) "
        "{ c = Conv(x, w) d = Conv(c, w2) a = Add(d, p) b = Mul(d, q) }",
        {"w": (16, 16, 1, 1), "w2": (16, 16, 1, 1), "p": (1, 16, 8, 8), "q": (1, 16, 8, 8)},
    )
    same = model.graph.initializers["p"].const_value
    assert same is not None
    model.graph.initializers["q"].const_value = ir.tensor(same.numpy(), name="q")
    before = open_session(model).run(feeds := feeds_for(model))
    apply(Quantize(type="int8"), model, feeds=[feeds])
    path = write(model, tmp_path / "model.onnx")
    proto = onnx.load(path)
    numbers = [(t.data_type, tuple(t.dims), t.raw_data) for t in proto.graph.initializer]
    assert len(numbers) == len(set(numbers))
    pairs = {n for node in proto.graph.node if node.op_type.endswith("uantizeLinear") for n in node.output}
    assert not {info.name for info in proto.graph.value_info} & {
        *pairs,
        *(t.name for t in proto.graph.initializer),
    }
    after = open_session(path).run(feeds)
    assert all(relative_error(exact, after[name]) < 2e-2 for name, exact in before.items())


def test_equal_texts_stay_two() -> None:
    text = np.array(["text"], dtype=object)
    texts = [onnx.numpy_helper.from_array(text, name) for name in ("one", "other")]
    graph = onnx.helper.make_graph([], "g", [], [], texts)
    assert share_equal(model := ir.from_proto(onnx.helper.make_model(graph))) == 0
    assert list(model.graph.initializers) == ["one", "other"]
