"""Models that come in Q/DQ are written anew for the target, with the ranges and weights that they came with."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import sparsecc
from sparsecc.passes.quantize import Quantize
from sparsecc.passes.quantize.layer_scale import GRID, layer_scale
from sparsecc.passes.quantize.lift import lift
from sparsecc.passes.quantize.select_layers import UNTOLD
from sparsecc.passes.weights.linear_layers import find_layers
from sparsecc.report.summary import held_for
from sparsecc.runtime.numerics import sqnr
from tests.quantize_models import convolutions, feeds_for, transformer, weighted
from tests.test_quantize import apply, outputs, relative_error

Feeds = dict[str, np.ndarray]


class Reader:
    """Samples as quantize_static asks for them."""

    def __init__(self, feeds: list[Feeds]) -> None:
        self.left = iter(feeds)

    def get_next(self) -> Feeds | None:
        return next(self.left, None)


def by_onnxruntime(model: ir.Model, feeds: list[Feeds], folder: Path, **options: Any) -> ir.Model:
    """What ONNX Runtime's own tool makes of a model, in Q/DQ."""
    from onnxruntime.quantization import quantize_static

    ir.save(model, folder / "float.onnx")
    quantize_static(folder / "float.onnx", folder / "qdq.onnx", Reader(feeds), **options)
    return ir.load(folder / "qdq.onnx")


def kinds(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


def test_lifting_gives_the_float_operators_the_stored_weights_and_the_ranges(tmp_path: Path) -> None:
    model = convolutions()
    feeds = feeds_for(model)
    given = by_onnxruntime(model, [feeds], tmp_path, per_channel=True)
    wanted = outputs(given, feeds)
    ranges = lift(given)
    assert ranges is not None
    assert not set(kinds(given)) & {"QuantizeLinear", "DequantizeLinear"}
    weights = {
        name: value.const_value.numpy()
        for name, value in given.graph.initializers.items()
        if value.const_value
    }
    exact = model.graph.initializers["conv2.weight"].const_value
    assert exact is not None
    assert 0 < relative_error(exact.numpy(), weights["conv2.weight"]) < 1e-3
    low, high = ranges["image"]
    assert low == pytest.approx(feeds["image"].min(), rel=0.05)
    assert high == pytest.approx(feeds["image"].max(), rel=0.05)
    assert relative_error(wanted, outputs(given, feeds)) < 1e-3
    assert kinds(given)["Clip"] + kinds(given)["Relu"] == 4  # the tool leaves out what its ranges imply


@pytest.mark.parametrize("make", [convolutions, transformer])
def test_onnx_runtimes_form_becomes_tensorrts_and_back(make: Any, tmp_path: Path) -> None:
    model = make()
    feeds = feeds_for(model)
    given = by_onnxruntime(model, [feeds], tmp_path, per_channel=True)
    came, wanted = kinds(given), outputs(given, feeds)
    apply(Quantize(type="int8"), given, "tensorrt", [feeds])
    for node in given.graph:
        if node.op_type == "QuantizeLinear":
            zero = node.inputs[2]
            assert zero is not None
            assert zero.const_value is not None
            assert not zero.const_value.numpy().any()
            assert zero.const_value.numpy().dtype == np.int8
    there = kinds(given)
    assert there["DequantizeLinear"] < came["DequantizeLinear"]
    assert relative_error(wanted, outputs(given, feeds)) < 2e-3
    apply(Quantize(type="int8"), given, "onnx", [feeds])
    back = kinds(given)
    assert back["DequantizeLinear"] > there["DequantizeLinear"]
    assert relative_error(wanted, outputs(given, feeds)) < 2e-3


@pytest.mark.parametrize(
    ("make", "scheme", "operators"),
    [
        (convolutions, "qoperator", {"QLinearConv", "QLinearAdd"}),
        (transformer, "auto", {"MatMulIntegerToFloat"}),
    ],
)
def test_integer_operators_are_taken_apart_too(make: Any, scheme: str, operators: set[str]) -> None:
    """ONNX Runtime's own operators become TensorRT's pairs."""
    model = make()
    feeds = feeds_for(model)
    apply(Quantize(type="int8", scheme=scheme), model, "onnxruntime", [feeds])
    came, wanted = kinds(model), outputs(model, feeds)
    assert operators <= set(came)
    result, _ = apply(Quantize(type="int8"), model, "tensorrt", [feeds])
    assert result.facts["lifted"] > 0
    now = kinds(model)
    assert not operators & set(now)
    assert now["QuantizeLinear"] > 0
    assert relative_error(wanted, outputs(model, feeds)) < 3e-3


def test_weights_keep_the_scales_that_they_came_with(tmp_path: Path) -> None:
    """One scale for the whole tensor, as the tool was told: a scale per channel would round its numbers again."""
    model = convolutions()
    feeds = feeds_for(model)
    given = by_onnxruntime(model, [feeds], tmp_path, per_channel=False)
    stored = given.graph.initializers["conv2.weight_quantized"].const_value
    apply(Quantize(type="int8"), given, "onnx", [feeds])
    now = given.graph.initializers["conv2.weight_int8"].const_value
    assert stored is not None
    assert now is not None
    assert np.array_equal(stored.numpy(), now.numpy())


def test_layers_that_were_left_in_float_are_quantized_too(tmp_path: Path) -> None:
    model = convolutions()
    for number, node in enumerate(model.graph):
        node.name = f"{node.op_type}_{number}"
    convs = [node.name or "" for node in model.graph if node.op_type == "Conv"]
    feeds = feeds_for(model)
    given = by_onnxruntime(model, [feeds], tmp_path, nodes_to_exclude=convs[1:3])
    result, _ = apply(Quantize(type="int8"), given, "onnx", [feeds])
    assert set(convs) <= set(result.facts["nodes"])
    assert result.facts["lifted"] > 0


def test_integers_that_other_operators_read_stay(tmp_path: Path) -> None:
    text = """<ir_version: 9, opset_import: ["" : 19]> g (float[4,8] x) => (float[4,8] y, uint8[4,8] codes) {
        step = Constant<value = float {0.1}>()
        zero = Constant<value = uint8 {128}>()
        codes = QuantizeLinear(x, step, zero)
        y = DequantizeLinear(codes, step, zero)
    }"""
    model = ir.from_onnx_text(text)
    from sparsecc.ir.graph_editor import prepare

    prepare(model)
    before = kinds(model)
    assert lift(model) is None
    assert kinds(model) == before


def test_a_compile_writes_a_file_of_another_tool_anew_and_it_is_made_again(tmp_path: Path) -> None:
    model = convolutions()
    feeds = [feeds_for(model, seed=seed) for seed in range(4)]
    by_onnxruntime(model, feeds, tmp_path)
    np.savez(tmp_path / "c.npz", image=np.concatenate([one["image"] for one in feeds]))
    made = sparsecc.compile(
        tmp_path / "qdq.onnx",
        target="onnx",
        quantize="int8!",
        calib=tmp_path / "c.npz",
        output=tmp_path / "o",
        measure=False,
    )
    assert made.report["verification"]["status"] == "proved"
    (facts,) = [row["facts"] for row in made.report["passes"] if "lifted" in row.get("facts", {})]
    assert facts["lifted"] > 5
    found = sparsecc.verify(
        tmp_path / "o", model=tmp_path / "qdq.onnx", reproduce=True, calib=tmp_path / "c.npz"
    )
    assert all(row["ok"] for row in found["checks"])
    types = {t.data_type for t in onnx.load(tmp_path / "o" / "model.onnx").graph.initializer}
    assert onnx.TensorProto.INT8 in types


def _residual(behind: str = "y = Add(b, x)") -> ir.Model:
    """Two convolutions in Q/DQ, per tensor around a zero point of 131, and a sum that the file leaves in float."""
    model = weighted(
        f"""res (float[1,16,12,12] image, WEIGHTS) => (float[1,16,12,12] y) <uint8 mid = {{131}}, uint8 zero = {{0}},
            float image_step = {{0.3}}, float step = {{0.2}}> {{
            q = QuantizeLinear(image, image_step, mid)
            x = DequantizeLinear(q, image_step, mid)
            a0 = Conv<pads = [1,1,1,1]>(x, w1)
            a = Relu(a0)
            aq = QuantizeLinear(a, step, zero)
            ad = DequantizeLinear(aq, step, zero)
            b0 = Conv<pads = [1,1,1,1]>(ad, w2)
            bq = QuantizeLinear(b0, step, mid)
            b = DequantizeLinear(bq, step, mid)
            {behind}
        }}""",
        {"w1": (16, 16, 3, 3), "w2": (16, 16, 3, 3)},
    )
    graph = model.graph
    for name in ("w1", "w2"):
        held = graph.initializers[name].const_value
        assert held is not None
        step = np.float32(np.ptp(held.numpy()) / 255)
        levels = np.clip(np.rint(held.numpy() / step) + 131, 0, 255).astype(np.uint8)
        parts = {"quantized": levels, "step": step, "zero": np.uint8(131)}
        tensors = {part: ir.tensor(array) for part, array in parts.items()}
        made = [
            ir.Value(
                name=f"{name}_{part}",
                type=ir.TensorType(one.dtype),
                shape=ir.Shape(one.shape.numpy()),
                const_value=one,
            )
            for part, one in tensors.items()
        ]
        for value in made:
            graph.register_initializer(value)
        node = ir.node("DequantizeLinear", made, name=f"{name}_node")
        graph.initializers[name].replace_all_uses_with(node.outputs[0])
        graph.insert_before(graph[0], node)
        del graph.initializers[name]
    return model


def test_a_sum_whose_range_the_file_leaves_out_stays_in_float_and_nothing_is_clipped_by_other_data() -> None:
    """Random inputs of another size than those that the file was calibrated on must not decide any range."""
    model = _residual()
    small, large = (
        {"image": np.random.default_rng(0).normal(0, size, (1, 16, 12, 12)).astype(np.float32)}
        for size in (0.5, 10.0)
    )
    wanted = outputs(model, large)
    result, _ = apply(Quantize(type="int8"), model, feeds=[small])
    assert [remark.reason for remark in result.remarks] == [UNTOLD]
    assert result.facts["lifted"] == 3
    assert not result.facts["sqnr_db"], "no range is new"
    assert sqnr(wanted, outputs(model, large)) > 35


def test_a_sum_that_integers_read_gets_a_range_of_the_samples_and_random_ones_are_warned_of(
    tmp_path: Path,
) -> None:
    behind = "c = Add(b, x) y = Conv<pads = [1,1,1,1]>(c, w2)"
    model = _residual(behind=behind)
    ir.save(model, tmp_path / "qdq.onnx")
    made = sparsecc.compile(
        tmp_path / "qdq.onnx", quantize="int8!", calib="synthetic", output=tmp_path / "o", measure=False
    )
    assert any(
        "2 more, as of 'c', are those of random inputs" in warning for warning in made.report["warnings"]
    )
    assert (
        "It came in Q/DQ: its integers and 3 ranges of it are kept, and all figures are against it as it came"
        in (held_for(made.report))
    )


def test_channels_whose_integers_fit_keep_their_scale_beside_others_that_do_not() -> None:
    model = _residual()
    lift(model)
    (first, *_), _ = find_layers(model)
    spread = first.weight.meta[GRID]
    levels = first.array() / spread
    fits = np.abs(levels).reshape(16, -1).max(axis=1) <= 127.01
    assert 0 < fits.sum() < 16
    kept = layer_scale(first, first.out_axis) == np.float32(spread.reshape(-1)[0])
    assert (kept == fits).all()
