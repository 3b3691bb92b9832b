"""Products, convolutions, normalisations and experts."""

from __future__ import annotations

import pytest

from tests.rule_checks import check, check_free, why_pinned

IMAGE = "p = GlobalAveragePool({0}) f = Flatten(p) y = MatMul(f, w9) }}"


@pytest.mark.parametrize("group", [1, 2, 4, 8])
def test_convolution(group: int) -> None:
    width = 8 // group
    model = check(
        f"(float[N, 3, 5, 5] x, float[8, 3, 1, 1] w1, float[8] w2, float[16, {width}, 3, 3] w3, float[16] "
        "w4, float[16, 2] w9) "
        f"=> (float y) {{ h = Conv(x, w1, w2) c = Conv<group = {group}, pads = [1, 1, 1, 1]>(h, w3, w4) "
        + IMAGE.format("c"),
        "w1:0 w2:0 w3:0 w4:0 w9:0" + (" w3:1" if width > 1 else ""),
    )
    assert (
        next(n for n in model.graph if "group" in n.attributes).attributes["group"].as_int()
        == (group + 1) // 2
    )


@pytest.mark.parametrize("group", [1, 2, 4])
def test_transposed_convolution(group: int) -> None:
    check(
        f"(float[N, 3, 5, 5] x, float[8, 3, 1, 1] w1, float[8, {12 // group}, 2, 2] w3, float[12] w4, "
        "float[12, 2] w9) "
        f"=> (float y) {{ h = Conv(x, w1) c = ConvTranspose<group = {group}, strides = [2, 2]>(h, w3, w4) "
        + IMAGE.format("c"),
        "w1:0 w3:0 w3:1 w4:0 w9:0",
    )


SHUFFLED = (
    "(float[N, 3, 5, 5] x, float[12, 3, 1, 1] w1, float[9, 4, 1, 1] w3, float[9] w4, float[9, 2] w9) "
    "=> (float y) <int64[5] apart = {0, 3, 4, 5, 5}, int64[4] together = {0, 12, 5, 5}> "
    "{ h = Conv(x, w1) s = Reshape(h, apart) t = Transpose<perm = [0, 2, 1, 3, 4]>(s) u = Reshape(t, together) "
    "c = Conv<group = 3>(u, w3, w4) "
)


def test_groups_that_a_shuffle_has_crossed_hold_the_input_alone() -> None:
    text = SHUFFLED + IMAGE.format("c")
    check(text, "w3:0 w4:0 w9:0")
    assert "cannot be seen as 3 groups" in why_pinned(text, "w3:1")


def test_deformable_convolution() -> None:
    check_free(
        "(float[2, 3, 5, 5] x, float[2, 18, 3, 3] o, float[8, 3, 1, 1] w1, float[6, 8, 3, 3] w3, float[6] "
        "w4, float[6, 2] w9) "
        "=> (float y) { h = Conv(x, w1) c = DeformConv<kernel_shape = [3, 3]>(h, w3, o, w4) "
        + IMAGE.format("c"),
        "w1:0 w3:0 w3:1 w4:0 w9:0",
        opset=22,
    )


@pytest.mark.parametrize("group", [1, 4])
@pytest.mark.parametrize("operator", ["NhwcConv", "NhwcFusedConv"])
def test_convolution_over_nhwc(operator: str, group: int) -> None:
    check_free(
        f"(float[2, 5, 5, 3] x, float[8, 3, 1, 1] w1, float[8] w2, float[12, {8 // group}, 3, 3] w3, "
        "float[12, 2] w9) => (float y) "
        f"{{ h = com.microsoft.{operator}(x, w1, w2) g = com.microsoft.{operator}<group = {group}>(h, w3) "
        "c = Transpose<perm = [0, 3, 1, 2]>(g) " + IMAGE.format("c"),
        "w1:0 w2:0 w3:0 w3:1 w9:0",
    )


def test_a_causal_convolution_with_its_state() -> None:
    for domain, opset in (("", 27), ("com.microsoft.", 23)):
        check_free(
            "(float[2, 5, 6] x, float[6, 8] w1, float[8, 1, 4] w2, float[8] w3, float[8, 3] w4) => (float y) "
            f"{{ h = MatMul(x, w1) t = Transpose<perm = [0, 2, 1]>(h) c, p = "
            f"{domain}CausalConvWithState(t, w2, w3) "
            "u = Transpose<perm = [0, 2, 1]>(c) y = MatMul(u, w4) }",
            "w1:1 w2:0 w3:0 w4:0",
            opset,
        )


@pytest.mark.parametrize(("a", "b"), [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_gemm(a: int, b: int) -> None:
    shape = "8, 6" if b else "6, 8"
    check(
        f"(float[{'6, 4' if a else '4, 6'}] x, float[{shape}] w1, float[8] w2, float[3, 8] w3) => (float y) "
        f"{{ h = Gemm<transA = {a}, transB = {b}, alpha = 0.5, beta = 2.0>(x, w1, w2) r = Relu(h) y = "
        f"Gemm<transB = 1>(r, w3) }}",
        f"w1:{0 if b else 1} w2:0 w3:1",
    )


def test_products_of_two_activations() -> None:
    check(
        "(float[N, 5, 6] x, float[6, 12] w1, float[6, 12] w2, float[6, 12] w3, float[12, 3] w4) => (float y) "
        "<int64[4] k = {0, 0, 3, 4}, int64[3] back = {0, 0, -1}> "
        "{ a = MatMul(x, w1) b = MatMul(x, w2) c = MatMul(x, w3) ar = Reshape(a, k) br = Reshape(b, k) cr "
        "= Reshape(c, k) "
        "q = Transpose<perm = [0, 2, 1, 3]>(ar) t = Transpose<perm = [0, 2, 3, 1]>(br) v = Transpose<perm "
        "= [0, 2, 1, 3]>(cr) "
        "e = MatMul(q, t) p = Softmax(e) o = MatMul(p, v) u = Transpose<perm = [0, 2, 1, 3]>(o) r = "
        "Reshape(u, back) "
        "y = MatMul(r, w4) }",
        "w1:1 w2:1 w3:1 w4:0",
    )


@pytest.mark.parametrize(
    ("equation", "shape", "free"),
    [
        ("bsd,df->bsf", "6, 8", "w1:1"),
        ("bsd,fd->bsf", "8, 6", "w1:0"),
        ("bcx,xd", "6, 8", "w1:1"),
        ("...d,df->...f", "6, 8", "w1:1"),
        ("...d,df", "6, 8", "w1:1"),
    ],
)
def test_einsum(equation: str, shape: str, free: str) -> None:
    check(
        f"(float[2, 5, 6] x, float[{shape}] w1, float[8, 3] w2) => (float y) "
        f'{{ h = Einsum<equation = "{equation}">(x, w1) y = MatMul(h, w2) }}',
        f"{free} w2:0",
    )


def test_experts_as_stacked_products() -> None:
    check(
        "(float[N, 6] x, float[6, 4] w0, float[4, 6, 8] w1, float[4, 8, 6] w2) => (float y) "
        "<int64[1] zero = {0}, int64[1] one = {1}, int64[1] last = {-1}> "
        "{ r = MatMul(x, w0) p = Softmax(r) u = Unsqueeze(x, zero) h = MatMul(u, w1) g = Relu(h) o = "
        "MatMul(g, w2) "
        "t = Transpose<perm = [1, 0, 2]>(o) q = Unsqueeze(p, last) m = Mul(t, q) y = ReduceSum<keepdims = "
        "0>(m, one) }",
        "w1:2 w2:1",
    )


def test_experts_as_einsum() -> None:
    check(
        "(float[5, 6] x, float[4, 6, 8] w1, float[4, 8, 6] w2) => (float y) "
        '{ h = Einsum<equation = "td,edf->etf">(x, w1) g = Relu(h) y = Einsum<equation = "etf,efd->td">(g, '
        "w2) }",
        "w1:0 w1:2 w2:0 w2:1",
    )


MIXTURE = (
    "(float[5, 6] x, float[6, 8] w0, float[8, 4] w1, float[4, {inner}, 8] w2, float[4, {inner}] w3, "
    "float[4, 8, 10] w4, "
    "float[4, 8] w5{third}, float[8, 3] w9) => (float y) {{ h = MatMul(x, w0) r = MatMul(h, w1) "
    "m = com.microsoft.MoE<k = {k}, normalize_routing_weights = 1, {options}>(h, r, w2, w3, w4, w5{uses}) y "
    "= MatMul(m, w9) }}"
)
EXPERTS = "w0:1 w1:0 w1:1 w2:0 w2:1 w2:2 w3:0 w3:1 w4:0 w4:1 w4:2 w5:0 w5:1 w9:0"


@pytest.mark.parametrize("k", [2, 4])
@pytest.mark.parametrize(
    ("inner", "options"),
    [
        (10, 'activation_type = "gelu"'),
        (20, 'activation_type = "swiglu", swiglu_fusion = 1'),
    ],
)
def test_mixture_of_experts(inner: int, options: str, k: int) -> None:
    check(MIXTURE.format(k=k, inner=inner, options=options, third="", uses=""), EXPERTS)


def test_mixture_of_experts_with_a_gate_of_its_own() -> None:
    text = MIXTURE.format(
        k=2,
        inner=10,
        options='activation_type = "silu"',
        third=", float[4, 10, 8] w6, float[4, 10] w7",
        uses=", w6, w7",
    )
    check_free(text, EXPERTS + " w6:0 w6:1 w6:2 w7:0 w7:1")


def test_batch_and_instance_normalization() -> None:
    check(
        "(float[N, 3, 5, 5] x, float[8, 3, 1, 1] w1, float[8] w2, float[8] w3, float[8] w4, float[8] s1, "
        "float[8] w5, "
        "float[8] w6, float[8, 2] w9) => (float y) "
        "{ h = Conv(x, w1) b = BatchNormalization(h, w2, w3, w4, s1) t = Abs(b) i = "
        "InstanceNormalization(t, w5, w6) r = Relu(i) " + IMAGE.format("r"),
        "w1:0 w2:0 w3:0 w4:0 s1:0 w5:0 w6:0 w9:0",
    )


@pytest.mark.parametrize("statistics", ["", ", float m"], ids=["unread", "read"])
def test_batch_normalization_in_training_is_over_all_but_its_channels(statistics: str) -> None:
    text = (
        "(float[2, 5, 6] x, float[6, 8] w1, float[5] w2, float[5] w3, float[5] w4, float[5] s1, float[8, 3] w9) "
        f"=> (float y{statistics}) {{ h = MatMul(x, w1) b, m, v = BatchNormalization<training_mode = 1, "
        "epsilon = 0.1>(h, w2, w3, w4, s1) y = MatMul(b, w9) }"
    )
    if statistics:
        assert "the statistics" in why_pinned(text, "w1:1")
    else:
        check(text, "w1:1 w9:0")


@pytest.mark.parametrize(
    "operator", ["LayerNormalization(h, w2, w3)", "LayerNormalization(h, w2)", "RMSNormalization(h, w2)"]
)
def test_layer_normalization(operator: str) -> None:
    w3 = ", float[8] w3" if "w3" in operator else ""
    check(
        f"(float[N, 5, 6] x, float[6, 8] w1, float[8] w2{w3}, float[8, 3] w9) => (float y) "
        f"{{ h = MatMul(x, w1) n = {operator} y = MatMul(n, w9) }}",
        "w1:1 w2:0 w9:0" + (" w3:0" if w3 else ""),
    )


@pytest.mark.parametrize("affine", [8, 4])
def test_group_normalization(affine: int) -> None:
    opset = 18 if affine == 4 else 21
    text = (
        f"(float[N, 3, 5, 5] x, float[8, 3, 1, 1] w1, float[{affine}] w2, float[{affine}] w3, float[8, 2] "
        "w9) => (float y) "
        "{ h = Conv(x, w1) g = GroupNormalization<num_groups = 4>(h, w2, w3) r = Relu(g) " + IMAGE.format("r")
    )
    model = check(text, "w1:0 w2:0 w3:0 w9:0", opset)
    assert (
        next(n for n in model.graph if n.op_type == "GroupNormalization").attributes["num_groups"].as_int()
        == 2
    )


def test_group_normalization_of_onnx_runtime() -> None:
    for operator, operands in (("GroupNorm", "h, w2, w3"), ("SkipGroupNorm", "h, w2, w3, h")):
        text = (
            "(float[2, 5, 5, 3] x, float[3, 12] w1, float[12] w2, float[12] w3, float[12, 2] w9) => (float "
            "y) "
            f"{{ h = MatMul(x, w1) g = com.microsoft.{operator}<groups = 4, activation = 0>({operands}) y "
            f"= MatMul(g, w9) }}"
        )
        check_free(text, "w1:1 w2:0 w3:0 w9:0")


@pytest.mark.parametrize(
    ("operators", "rows"),
    [
        ("a = com.microsoft.BiasSplitGelu(h, w2)", 4),
        ("a = com.microsoft.BiasDropout(h, w2)", 8),
        ("a = com.microsoft.BiasAdd(h, w2, h)", 8),
        ("s = com.microsoft.ScaledSiLU(h) a = Add(s, w2)", 8),
        ("s = com.microsoft.Trilu(h) a = Add(s, w2)", 8),
        ("a = Add(h, w2)", 8),
    ],
)
def test_fused_with_a_bias(operators: str, rows: int) -> None:
    check_free(
        f"(float[2, 3, 5, 6] x, float[6, 8] w1, float[8] w2, float[{rows}, 3] w3) => (float y) "
        f"{{ h = MatMul(x, w1) {operators} y = MatMul(a, w3) }}",
        "w1:1 w2:0 w3:0" if "Trilu" not in operators else "",
    )


def test_a_softmax_with_a_bias_pins_its_axis() -> None:
    text = (
        "(float[2, 4, 5, 6] x, float[6, 8] w1, float[2, 1, 5, 8] w2) => (float y) "
        "{ h = MatMul(x, w1) y = com.microsoft.BiasSoftmax<axis = 3, is_inner_broadcast = 0>(h, w2) }"
    )
    assert "normalised" in why_pinned(text, "w1:1")


@pytest.mark.parametrize(
    "operator", ['FusedMatMulActivation<activation = "Relu">', "TransposeMatMul", "FusedMatMul<transA = 1>"]
)
def test_fused_matrix_products(operator: str) -> None:
    shape = "6, 5" if "transA" in operator else "5, 6"
    check_free(
        f"(float[2, {shape}] x, float[6, 8] w1, float[8, 3] w2) => (float y) "
        f"{{ h = com.microsoft.{operator}(x, w1) y = MatMul(h, w2) }}",
        "w1:1 w2:0",
    )


@pytest.mark.parametrize("rule", ["", "com.microsoft."])
def test_linear_attention(rule: str) -> None:
    check_free(
        "(float[2, 5, 6] x, float[6, 36] w1, float[6, 9] w2, float[6, 15] w3, float[60, 3] w4) => (float y) "
        "{ q = MatMul(x, w1) k = MatMul(x, w2) v = MatMul(x, w3) "
        f'a, p = {rule}LinearAttention<q_num_heads = 12, kv_num_heads = 3, update_rule = "linear">(q, k, v) '
        f"y = MatMul(a, w4) }}",
        "w1:1 w2:1 w3:1 w4:0",
        27 if not rule else 23,
    )


def test_one_step_of_a_decoder() -> None:
    check_free(
        "(float[2, 1, 6] x, float[6, 15] w1, float[6, 15] w2, float[6, 15] w3, float[15, 3] w4) => (float y) "
        "{ q = MatMul(x, w1) k = MatMul(x, w2) v = MatMul(x, w3) "
        "a = com.microsoft.DecoderMaskedMultiHeadAttention<num_heads = 5>(q, k, v) y = MatMul(a, w4) }",
        "w1:1 w2:1 w3:1 w4:0",
    )


def test_grids_of_onnx_runtime() -> None:
    check_free(
        "(float[2, 3, 8, 8] x, float[2, 5, 5, 2] g, float[6, 3, 1, 1] w1, float[6, 2] w9) => (float y) "
        "{ h = Conv(x, w1) a = com.microsoft.GridSample(h, g) " + IMAGE.format("a"),
        "w1:0 w9:0",
    )


def test_gated_activation_of_two_products() -> None:
    check_free(
        "(float[N, 6] x, float[6, 8] w1, float[6, 8] w2, float[8, 3] w3) => (float y) "
        "{ h = MatMul(x, w1) g = MatMul(x, w2) a = SwiGLU(h, g) y = MatMul(a, w3) }",
        "w1:1 w2:1 w3:0",
        28,
    )


@pytest.mark.parametrize(
    ("operators", "free"),
    [
        ("i = BitCast<to = 6>(h) a = BitCast<to = 1>(i)", "w1:1 w2:0"),
        ("a = CumProd(h, k)", ""),
        ("e = EyeLike(h) a = Add(h, e)", ""),
        ("r = Range(zero, eight, one) f = Cast<to = 1>(r) a = Add(h, f)", ""),
    ],
)
def test_newer_operators(operators: str, free: str) -> None:
    check_free(
        "(float[3, 6] x, float[6, 8] w1, float[8, 3] w2) => (float y) "
        "<int64 k = {1}, int64 zero = {0}, int64 eight = {8}, int64 one = {1}> "
        f"{{ h = MatMul(x, w1) {operators} y = MatMul(a, w2) }}",
        free,
        26,
    )
