"""Quantized graphs as input, in both forms: QDQ and operators that compute in integers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from sparsecc import compile
from tests.rule_checks import check, check_free, model_of, why_pinned

UNSIGNED = "float s1, uint8 z1, float s2, uint8 z2"


@pytest.mark.parametrize("channels", [None, 8])
def test_quantized_and_dequantized_weights(channels: int | None) -> None:
    kind = f"float[{channels}] s3, int8[{channels}] z3" if channels else "float s3, int8 z3"
    per = " s3:0 z3:0" if channels else ""
    check(
        f"(float[N, 3, 6, 6] x, int8[8, 3, 3, 3] w1, {kind}, {UNSIGNED}, float[8, 2] w2) => (float y) "
        "{ a = QuantizeLinear(x, s1, z1) b = DequantizeLinear(a, s1, z1) "
        "d = DequantizeLinear<axis = 0>(w1, s3, z3) c = Conv(b, d) e = QuantizeLinear(c, s2, z2) "
        "f = DequantizeLinear(e, s2, z2) g = Relu(f) p = GlobalAveragePool(g) q = Flatten(p) y = MatMul(q, "
        "w2) }",
        "w1:0 w2:0" + per,
        values={"s2": np.float32(0.3)},
    )


def test_per_channel_activations() -> None:
    check(
        "(float[N, 6] x, float[6, 8] w1, float[8] s1, uint8[8] z1, float[8, 2] w2) => (float y) "
        "{ h = MatMul(x, w1) a = QuantizeLinear<axis = 1>(h, s1, z1) b = DequantizeLinear<axis = 1>(a, s1, "
        "z1) y = MatMul(b, w2) }",
        "w1:1 s1:0 z1:0 w2:0",
    )


def test_blocks_of_weights() -> None:
    check(
        "(float[N, 6] x, float[6, 16] w1, int8[16, 5] w2, float[4, 5] s1, float[5, 2] w3) => (float y) "
        "{ h = MatMul(x, w1) d = DequantizeLinear<axis = 0, block_size = 4>(w2, s1) g = MatMul(h, d) y = "
        "MatMul(g, w3) }",
        "w1:1 w2:0 w2:1 s1:0 s1:1 w3:0",
    )


def test_scale_chosen_at_run_time() -> None:
    check(
        "(float[N, 6] x, float[6, 8] w1, uint8[8, 5] w2, uint8 z2, float s2, float[5, 2] w3) => (float y) "
        "{ h = MatMul(x, w1) q, s, z = DynamicQuantizeLinear(h) m = MatMulInteger(q, w2, z, z2) c = "
        "Cast<to = 1>(m) "
        "t = Mul(s, s2) g = Mul(c, t) y = MatMul(g, w3) }",
        "w1:1 w2:0 w2:1 w3:0",
    )


def test_integer_product_with_zero_points_per_column() -> None:
    check(
        "(float[N, 6] x, float[6, 8] w1, float s1, uint8 z1, uint8[8, 5] w2, uint8[5] z2, float[5, 2] w3) "
        "=> (float y) "
        "{ h = MatMul(x, w1) q = QuantizeLinear(h, s1, z1) m = MatMulInteger(q, w2, z1, z2) c = Cast<to = "
        "1>(m) "
        "y = MatMul(c, w3) }",
        "w1:1 w2:0 w2:1 z2:0 w3:0",
        values={"z1": np.uint8(131)},
    )


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("group", [1, 2, 6])
def test_integer_convolution(per_channel: bool, group: int) -> None:
    width = 6 // group
    count = "[6]" if per_channel else ""
    text = (
        f"(float[N, 3, 6, 6] x, float[6, 3, 1, 1] w1, float s1, uint8 z1, int8[6, {width}, 3, 3] w2, "
        f"int8{count} z2, "
        "float[6, 2] w3) => (float y) "
        f"{{ h = Conv(x, w1) q = QuantizeLinear(h, s1, z1) m = ConvInteger<group = {group}, pads = [1, 1, "
        "1, 1]>(q, w2, z1, z2) "
        "c = Cast<to = 1>(m) p = GlobalAveragePool(c) f = Flatten(p) y = MatMul(f, w3) }"
    )
    free = "w1:0 w2:0 w3:0" + (" w2:1" if width > 1 else "") + (" z2:0" if per_channel else "")
    check_free(text, free)
    if not per_channel:  # no CPU kernel takes zero points per channel
        check(text, free, values={"z1": np.uint8(131)})


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("group", [1, 2])
@pytest.mark.parametrize("domain", ["", "com.microsoft."])
def test_quantized_convolution(per_channel: bool, group: int, domain: str) -> None:
    count = "[8]" if per_channel else ""
    shape = f"8, {4 // group}, 3, 3"
    last = f"group = {group}, " + ("channels_last = 1, " if domain else "")
    forward = "g = Transpose<perm = [0, 2, 3, 1]>(q) " if domain else "g = Identity(q) "
    back = "k = Transpose<perm = [0, 3, 1, 2]>(d) " if domain else "k = Identity(d) "
    check(
        f"(float[2, 3, 6, 6] x, float[4, 3, 1, 1] w1, {UNSIGNED}, int8[{shape}] w2, float{count} s3, "
        f"int8{count} z3, "
        "int32[8] b4, float[8, 2] w3) => (float y) "
        f"{{ h = Conv(x, w1) q = QuantizeLinear(h, s1, z1) {forward}"
        f"d = {domain}QLinearConv<{last}pads = [1, 1, 1, 1]>(g, s1, z1, w2, s3, z3, s2, z2, b4) {back}"
        "e = DequantizeLinear(k, s2, z2) p = GlobalAveragePool(e) f = Flatten(p) y = MatMul(f, w3) }",
        "w1:0 w2:0 w2:1 b4:0 w3:0" + (" s3:0 z3:0" if per_channel else ""),
        values={"z1": np.uint8(131), "s2": np.float32(0.4), "z2": np.uint8(100),
                "z3": np.zeros(8 if per_channel else (), dtype=np.int8)},
    )  # fmt: skip


@pytest.mark.parametrize("columns", [False, True])
def test_quantized_product(columns: bool) -> None:
    count = "[5]" if columns else ""
    check(
        f"(float[N, 6] x, float[6, 8] w1, {UNSIGNED}, uint8[8, 5] w2, float{count} s3, uint8{count} z3, "
        "float[5, 2] w3) => (float y) "
        "{ h = MatMul(x, w1) q = QuantizeLinear(h, s1, z1) m = QLinearMatMul(q, s1, z1, w2, s3, z3, s2, z2) "
        "d = DequantizeLinear(m, s2, z2) y = MatMul(d, w3) }",
        "w1:1 w2:0 w2:1 w3:0" + (" s3:0 z3:0" if columns else ""),
        values={"z1": np.uint8(131), "s2": np.float32(0.2), "z2": np.uint8(90)},
    )


def test_quantized_gemm() -> None:
    check(
        f"(float[N, 6] x, float[6, 8] w1, {UNSIGNED}, uint8[5, 8] w2, float s3, uint8 z3, int32[5] b1, "
        "float[5, 2] w3) => (float y) "
        "{ h = MatMul(x, w1) q = QuantizeLinear(h, s1, z1) m = com.microsoft.QGemm<transB = 1>(q, s1, z1, "
        "w2, s3, z3, b1, s2, z2) "
        "d = DequantizeLinear(m, s2, z2) y = MatMul(d, w3) }",
        "w1:1 w2:0 w2:1 b1:0 w3:0",
        values={"z1": np.uint8(131), "s2": np.float32(0.2), "z2": np.uint8(90)},
    )


def test_products_fused_with_their_scales() -> None:
    check(
        "(float[N, 6] x, float[6, 8] w1, uint8[8, 5] w2, float[5] s2, uint8[5] z2, float[5] w4, float[5, "
        "2] w3) => (float y) "
        "{ h = MatMul(x, w1) q, s, z = DynamicQuantizeLinear(h) "
        "g = com.microsoft.MatMulIntegerToFloat(q, w2, s, s2, z, z2, w4) y = MatMul(g, w3) }",
        "w1:1 w2:0 w2:1 s2:0 z2:0 w4:0 w3:0",
    )
    check(
        "(float[N, 6] x, float[6, 8] w1, uint8[8, 5] w2, float[5] s2, uint8[5] z2, float[5] w4, float[5, "
        "2] w3) => (float y) "
        "{ h = MatMul(x, w1) g = com.microsoft.DynamicQuantizeMatMul(h, w2, s2, z2, w4) y = MatMul(g, w3) }",
        "w1:1 w2:0 w2:1 s2:0 z2:0 w4:0 w3:0",
    )


QUANTIZED = (
    f"(float[N, 6] x, float[6, 8] w1, float[6, 8] w2, {UNSIGNED}, float[{{rows}}, 2] w3) => (float y) "
    "{{ h = MatMul(x, w1) g = MatMul(x, w2) a = QuantizeLinear(h, s1, z1) b = QuantizeLinear(g, s1, z1) "
)


@pytest.mark.parametrize(
    "operators",
    [
        "q = com.microsoft.QLinearAdd(a, s1, z1, b, s1, z1, s2, z2)",
        "q = com.microsoft.QLinearMul(a, s1, z1, b, s1, z1, s2, z2)",
        "c = Greater(h, g) q = com.microsoft.QLinearWhere(c, a, s1, z1, b, s1, z1, s2, z2)",
    ],
)
def test_quantized_joins(operators: str) -> None:
    check(
        QUANTIZED.format(rows=8) + operators + " d = DequantizeLinear(q, s2, z2) y = MatMul(d, w3) }",
        "w1:1 w2:1 w3:0",
    )


def test_quantized_concat() -> None:
    check(
        QUANTIZED.format(rows=16) + "q = com.microsoft.QLinearConcat<axis = 1>(s2, z2, a, s1, z1, b, s1, z1) "
        "d = DequantizeLinear(q, s2, z2) y = MatMul(d, w3) }",
        "w1:1 w2:1 w3:0",
    )


@pytest.mark.parametrize("operator", ["QLinearLeakyRelu", "QLinearSigmoid"])
def test_quantized_activations(operator: str) -> None:
    check(
        QUANTIZED.format(rows=8) + f"q = com.microsoft.{operator}(a, s1, z1, s2, z2) "
        "d = DequantizeLinear(q, s2, z2) e = Add(d, g) y = MatMul(e, w3) }",
        "w1:1 w2:1 w3:0",
    )


def test_quantized_softmax_is_pinned() -> None:
    check(
        QUANTIZED.format(rows=8)
        + "q = com.microsoft.QLinearSoftmax<axis = -1, opset = 13>(a, s1, z1, s2, z2) "
        "d = DequantizeLinear(q, s2, z2) y = MatMul(d, w3) }",
        "w2:1",
        values={"s2": np.float32(1 / 256), "z2": np.uint8(0)},
    )


IMAGE = (
    f"(float[2, 3, 6, 6] x, float[8, 3, 1, 1] w1, {UNSIGNED}, float[8, 2] w3) => (float y) "
    "{ h = Conv(x, w1) q = QuantizeLinear(h, s1, z1) "
)
TAIL = " d = DequantizeLinear(k, s2, z2) p = GlobalAveragePool(d) f = Flatten(p) y = MatMul(f, w3) }"


@pytest.mark.parametrize(
    "operators",
    [
        "k = com.microsoft.QLinearGlobalAveragePool(q, s1, z1, s2, z2)",
        "k = com.microsoft.QLinearAveragePool<kernel_shape = [2, 2]>(q, s1, z1, s2, z2)",
        "n = Transpose<perm = [0, 2, 3, 1]>(q) m = com.microsoft.QLinearAveragePool<kernel_shape = [2, 2], "
        "channels_last = 1>(n, s1, z1, s2, z2) k = Transpose<perm = [0, 3, 1, 2]>(m)",
        "n = Transpose<perm = [0, 2, 3, 1]>(q) m = com.microsoft.NhwcMaxPool<kernel_shape = [2, 2]>(n) "
        "k = Transpose<perm = [0, 3, 1, 2]>(m)",
        "k = com.microsoft.QLinearReduceMean<axes = [2, 3]>(q, s1, z1, s2, z2)",
        "k = MaxPool<kernel_shape = [2, 2]>(q)",
    ],
)
def test_quantized_images(operators: str) -> None:
    check_free(IMAGE + operators + TAIL, "w1:0 w3:0")
    if "ReduceMean" not in operators:
        check(IMAGE + operators + TAIL, "w1:0 w3:0")


@pytest.mark.parametrize("domain", ["com.microsoft."])
def test_quantizers_of_onnx_runtime(domain: str) -> None:
    check(
        "(float[N, 6] x, float[6, 8] w1, float s1, uint16 z1, float[8, 2] w2) => (float y) "
        f"{{ h = MatMul(x, w1) q = {domain}QuantizeLinear(h, s1, z1) d = {domain}DequantizeLinear(q, s1, "
        f"z1) y = MatMul(d, w2) }}",
        "w1:1 w2:0",
        values={"z1": np.uint16(30000)},
    )


PACKED = (
    "(float[N, 6] x, float[6, 128] w1, uint8[8, 4, 16] w2, float[{scales}] s1{zeros}, float[8, 2] w3) => "
    "(float y) "
    "{{ h = MatMul(x, w1) g = com.microsoft.MatMulNBits<N = 8, K = 128, bits = 4, block_size = 32>(h, w2, "
    "s1{z}) "
    "y = MatMul(g, w3) }}"
)


@pytest.mark.parametrize("scales", ["32", "8, 4"])
def test_packed_weights(scales: str) -> None:
    axes = "s1:0" if scales == "32" else "s1:0 s1:1"
    model = check(PACKED.format(scales=scales, zeros="", z=""), f"w1:1 w2:0 w2:1 {axes} w3:0")
    node = next(n for n in model.graph if n.op_type == "MatMulNBits")
    assert (node.attributes["N"].as_int(), node.attributes["K"].as_int()) == (4, 64)


def test_packed_zero_points_keep_the_columns() -> None:
    check(PACKED.format(scales="32", zeros=", uint8[16] z1", z=", z1"), "w2:0 s1:0 z1:0 w3:0")


@pytest.mark.parametrize(("packed", "bits"), [(64, 4), (128, 8)])
def test_a_packed_table_loses_whole_blocks_of_its_columns(packed: int, bits: int) -> None:
    check(
        f"(int64[N, 3] ids, uint8[10, {packed}] w1, float[10, 4] s1, float[128, 6] w2) => (float y) "
        f"{{ g = com.microsoft.GatherBlockQuantized<bits = {bits}, block_size = 32, gather_axis = 0, "
        "quantize_axis = 1>(w1, ids, s1) y = MatMul(g, w2) }",
        "w1:1 s1:1 w2:0",
    )


PACKED_EXPERTS = (
    "(float[N, 6] x, float[6, 64] w0, float[6, 4] w1, uint8[4, {rows}, {bytes}] w2, float[4, {rows}{blocks}] s2, "
    "float[4, {rows}] w3, uint8[4, 64, {bytes}] w4, float[4, 64{blocks}] s4, float[4, 64] w5{more}, "
    "float[64, 3] w9) => (float y) {{ h = MatMul(x, w0) r = MatMul(x, w1) "
    "m = com.microsoft.QMoE<k = 2, normalize_routing_weights = 1, {options}>(h, r, w2, s2, w3, w4, s4, w5{uses}) "
    "y = MatMul(m, w9) }}"
)


def packed_experts(
    options: str, rows: int = 64, bits: int = 4, blocks: int = 2, more: str = "", uses: str = ""
) -> str:
    how = f"expert_weight_bits = {bits}, {options}" + (f", block_size = {64 // blocks}" if blocks else "")
    return PACKED_EXPERTS.format(
        rows=rows, bytes=8 * bits, blocks=f", {blocks}" if blocks else "", options=how, more=more, uses=uses
    )


EXPERTS = "w0:1 w1:1 w2:0 w2:1 w2:2 s2:0 s2:1 s2:2 w3:0 w3:1 w4:0 w4:1 w4:2 s4:0 s4:1 s4:2 w5:0 w5:1 w9:0"


@pytest.mark.parametrize("blocks", [2, 4])
@pytest.mark.parametrize(
    ("options", "rows"),
    [
        ('activation_type = "silu"', 64),
        ('activation_type = "swiglu", swiglu_fusion = 1', 128),
    ],
)
def test_packed_experts_lose_whole_blocks(options: str, rows: int, blocks: int) -> None:
    """Of hidden and inner slots whole blocks go, which have a scale of their own; of four experts two."""
    model = check(packed_experts(options, rows, blocks=blocks), EXPERTS)
    node = next(n for n in model.graph if n.op_type == "QMoE")
    constants = [value.const_value for i in (2, 3, 5, 6) if (value := node.inputs[i]) is not None]
    shapes = [one.numpy().shape for one in constants if one is not None]
    assert shapes == [(2, rows // 2, 16), (2, rows // 2, blocks // 2), (2, 32, 16), (2, 32, blocks // 2)]


@pytest.mark.parametrize("bits", [4, 8])
def test_packed_experts_under_one_scale_a_row_stay_as_wide(bits: int) -> None:
    text = packed_experts('activation_type = "silu"', bits=bits, blocks=0)
    check(text, "w1:1 w2:0 s2:0 w3:0 w4:0 s4:0 w5:0")


def test_zero_points_that_share_a_byte_keep_the_blocks_of_packed_experts() -> None:
    more, uses = ", uint8[4, 64, 1] z2, uint8[4, 64, 1] z4", ", , , , z2, z4"
    text = packed_experts('activation_type = "silu"', more=more, uses=uses)
    check(text, "w1:1 w2:0 s2:0 w3:0 w4:0 s4:0 w5:0 z2:0 z4:0")


def test_blocks_of_eight_bits_stay() -> None:
    """Their kernel has no form that does not round activations."""
    assert "rounds what meets blocks" in why_pinned(
        packed_experts('activation_type = "silu"', bits=8), "w0:1"
    )


@pytest.mark.parametrize("options", [{"prune": ["channels"]}, {"prune": ["experts"], "criterion": "reap"}])
def test_packed_experts_are_compiled_and_proved(options: dict[str, object], tmp_path: Path) -> None:
    """The dense operator with blocks or experts masked gives what the smaller one gives."""
    model = model_of(packed_experts('activation_type = "swiglu", swiglu_fusion = 1', 128, blocks=4))
    onnx.save(model, tmp_path / "packed.onnx")
    rows = np.random.default_rng(0).normal(size=(64, 6)).astype(np.float32)
    np.savez(tmp_path / "rows.npz", x=rows)
    settings: dict[str, Any] = {
        "ratio": 0.4,
        "measure": False,
        "next_steps": False,
        "allocator": "global",
        **options,
    }
    report = compile(
        tmp_path / "packed.onnx", output=tmp_path / "out", calib=tmp_path / "rows.npz", **settings
    ).report
    assert report["verification"]["status"] == "proved"
    shapes = {w.name: tuple(w.dims) for w in onnx.load(tmp_path / "out" / "model.onnx").graph.initializer}
    dense = {w.name: tuple(w.dims) for w in model.graph.initializer}
    smaller = {name: [a < b for a, b in zip(shapes[name], dense[name], strict=True)] for name in ("s2", "s4")}
    if options["prune"] == ["experts"]:
        assert smaller == {"s2": [True, False, False], "s4": [True, False, False]}
    else:
        assert smaller["s2"][2] or smaller["s4"][2]
