"""Attention as one operator, rotary embeddings and what ONNX Runtime fuses around them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from tests.rule_checks import check, check_free, why_pinned

QKV = (
    "(float[N, 5, 6] x, float[6, {q}] w1, float[6, {k}] w2, float[6, {v}] w3, float[{o}, 4] w4) => (float y) "
    "{{ q = MatMul(x, w1) k = MatMul(x, w2) v = MatMul(x, w3) "
)
ALL = "w1:1 w2:1 w3:1 w4:0"


def projected(operators: str, q: int = 16, k: int = 16, v: int = 16, o: int = 16) -> str:
    """Three projections, attention, an output projection."""
    return QKV.format(q=q, k=k, v=v, o=o) + operators + " y = MatMul(a, w4) }"


def scale_of(model: ir.Model, operator: str) -> float | None:
    return next(n for n in model.graph if n.op_type == operator).attributes.get_float("scale")


@pytest.mark.parametrize("causal", [0, 1])
def test_attention_of_flat_heads(causal: int) -> None:
    model = check(
        projected(f"a = Attention<q_num_heads = 4, kv_num_heads = 4, is_causal = {causal}>(q, k, v)"), ALL
    )
    assert scale_of(model, "Attention") == pytest.approx(0.5)


def test_a_given_scale_stays() -> None:
    model = check(projected("a = Attention<q_num_heads = 4, kv_num_heads = 4, scale = 0.3>(q, k, v)"), ALL)
    assert scale_of(model, "Attention") == pytest.approx(0.3)


def test_attention_whose_values_have_a_width_of_their_own() -> None:
    check(projected("a = Attention<q_num_heads = 4, kv_num_heads = 4>(q, k, v)", v=24, o=24), ALL)


def test_grouped_queries() -> None:
    model = check(
        projected("a = Attention<q_num_heads = 8, kv_num_heads = 2>(q, k, v)", q=32, k=8, v=12, o=48), ALL
    )
    node = next(n for n in model.graph if n.op_type == "Attention")
    assert (node.attributes["q_num_heads"].as_int(), node.attributes["kv_num_heads"].as_int()) == (2, 1)


def test_attention_of_separate_heads() -> None:
    heads = (
        "(float[N, 5, 6] x, float[4, 6, 8] w1, float[4, 6, 8] w2, float[4, 6, 10] w3, float[4, 10, 3] w4) "
        "=> (float y) "
    )
    body = (
        "<int64[1] one = {1}> { t = Unsqueeze(x, one) q = MatMul(t, w1) k = MatMul(t, w2) v = MatMul(t, w3) "
        "a = Attention(q, k, v) z = MatMul(a, w4) y = ReduceSum<keepdims = 0>(z, one) }"
    )
    check(heads + body, "w1:0 w1:2 w2:0 w2:2 w3:0 w3:2 w4:0 w4:1")


def test_a_mask_over_heads() -> None:
    check(
        projected("a = Attention<q_num_heads = 4, kv_num_heads = 4>(q, k, v, m)")
        .replace("float[6, 16] w1", "float[6, 16] w1, float[4, 5, 5] w5", 1)
        .replace(", m)", ", w5)"),
        ALL + " w5:0",
    )


def test_caches_pin_heads_and_widths() -> None:
    text = projected("a, pk, pv = Attention<q_num_heads = 4, kv_num_heads = 4>(q, k, v, , c, d)").replace(
        "float[N, 5, 6] x", "float[N, 5, 6] x, float[N, 4, 7, 4] c, float[N, 4, 7, 4] d"
    )
    assert why_pinned(text, "w1:1") == "graph input 'c'"
    check(text, "")


def test_scores_as_a_second_output() -> None:
    text = projected(
        "a, , , t = Attention<q_num_heads = 4, kv_num_heads = 4>(q, k, v) u = ReduceSum<keepdims = 0>(t, one)"
    )
    check(text.replace("(float y) ", "(float y, float u) <int64[1] one = {1}> "), ALL)


@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize("rotated", [0, 4])
def test_rotary_embedding(interleaved: int, rotated: int) -> None:
    columns = rotated // 2 or 4
    text = projected(
        f"qr = RotaryEmbedding<num_heads = 2, interleaved = {interleaved}, rotary_embedding_dim = "
        f"{rotated}>(q, w5, w6, ids) "
        f"kr = RotaryEmbedding<num_heads = 2, interleaved = {interleaved}, rotary_embedding_dim = "
        f"{rotated}>(k, w5, w6, ids) "
        "a = Attention<q_num_heads = 2, kv_num_heads = 2>(qr, kr, v)"
    ).replace(
        "float[6, 16] w1",
        f"int64[N, 5] ids, float[9, {columns}] w5, float[9, {columns}] w6, float[6, 16] w1",
        1,
    )
    check(text, f"{ALL} w5:1 w6:1")


@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize("given", [True, False])
def test_rotary_embedding_of_onnx_runtime(interleaved: int, given: bool) -> None:
    options = f"interleaved = {interleaved}" + (", num_heads = 2, rotary_embedding_dim = 4" if given else "")
    columns = 2 if given else 4
    text = projected(
        f"qr = com.microsoft.RotaryEmbedding<{options}>(q, ids, w5, w6) "
        f"kr = com.microsoft.RotaryEmbedding<{options}>(k, ids, w5, w6) "
        "a = com.microsoft.MultiHeadAttention<num_heads = 2>(qr, kr, v)"
    ).replace(
        "float[6, 16] w1",
        f"int64[N, 5] ids, float[9, {columns}] w5, float[9, {columns}] w6, float[6, 16] w1",
        1,
    )
    check(text, f"{ALL} w5:1 w6:1")


@pytest.mark.parametrize("sizes", [None, [16, 16, 24]])
def test_fused_attention(sizes: list[int] | None) -> None:
    total, out = (sum(sizes), sizes[2]) if sizes else (48, 16)
    extra = f", qkv_hidden_sizes = {sizes}" if sizes else ""
    model = check(
        f"(float[N, 5, 6] x, float[6, 8] w0, float[8, {total}] w1, float[{total}] w2, float[{out}, 3] w3) "
        "=> (float y) "
        f"{{ h = MatMul(x, w0) a = com.microsoft.Attention<num_heads = 4{extra}>(h, w1, w2) y = MatMul(a, "
        f"w3) }}",
        "w0:1 w1:0 w1:1 w2:0 w3:0",
    )
    assert scale_of(model, "Attention") == pytest.approx(0.5)


def test_fused_attention_with_a_bias_over_heads() -> None:
    check(
        "(float[2, 5, 6] x, float[6, 48] w1, float[48] w2, float[1, 4, 5, 5] w4, float[16, 3] w3) => "
        "(float y) "
        "{ a = com.microsoft.Attention<num_heads = 4, unidirectional = 1>(x, w1, w2, , , w4) y = MatMul(a, "
        "w3) }",
        "w1:1 w2:0 w3:0 w4:1",
    )


def test_fused_attention_with_a_cache() -> None:
    text = (
        "(float[2, 5, 6] x, float[2, 2, 4, 3, 4] past, float[6, 48] w1, float[48] w2, float[16, 3] w3) => "
        "(float y) "
        "{ a, present = com.microsoft.Attention<num_heads = 4, unidirectional = 1>(x, w1, w2, , past) y = "
        "MatMul(a, w3) }"
    )
    assert why_pinned(text, "w1:1") == "graph input 'past'"
    check(text, "")


def test_multi_head_attention_with_bias() -> None:
    model = check(
        projected("a = com.microsoft.MultiHeadAttention<num_heads = 4>(q, k, v, w5)", v=24, o=24).replace(
            "float[6, 16] w1", "float[56] w5, float[6, 16] w1", 1
        ),
        ALL + " w5:0",
    )
    assert scale_of(model, "MultiHeadAttention") == pytest.approx(0.5)


def test_multi_head_attention_with_a_bias_over_heads() -> None:
    check(
        projected("a = com.microsoft.MultiHeadAttention<num_heads = 4>(q, k, v, , , w5)").replace(
            "float[6, 16] w1", "float[1, 4, 5, 5] w5, float[6, 16] w1", 1
        ),
        ALL + " w5:1",
    )


def test_packed_queries_keys_and_values() -> None:
    check_free(
        "(float[2, 5, 6] x, float[6, 96] w1, float[32, 3] w4) => (float y) <int64[5] s = {2, 5, 4, 3, 8}> "
        "{ h = MatMul(x, w1) p = Reshape(h, s) a = com.microsoft.MultiHeadAttention<num_heads = 4>(p) y = "
        "MatMul(a, w4) }",
        "w1:1 w4:0",
    )


def test_packed_keys_and_values() -> None:
    check_free(
        "(float[2, 5, 6] x, float[6, 32] w1, float[6, 64] w2, float[32, 3] w4) => (float y) <int64[5] s = "
        "{2, 5, 4, 2, 8}> "
        "{ q = MatMul(x, w1) h = MatMul(x, w2) p = Reshape(h, s) "
        "a = com.microsoft.MultiHeadAttention<num_heads = 4>(q, p) y = MatMul(a, w4) }",
        "w1:1 w2:1 w4:0",
    )


GQA = "<int32[2] lengths = {4, 4}, int32[1] total = {5}> "


@pytest.mark.parametrize("rotary", [0, 1])
@pytest.mark.parametrize("packed", [False, True])
def test_group_query_attention(rotary: int, packed: bool) -> None:
    caches = "w5, w6" if rotary else ","
    given = "float[9, 16] w5, float[9, 16] w6, " if rotary else ""
    options = f"num_heads = 4, kv_num_heads = 2, do_rotary = {rotary}"
    if packed:
        text = (
            f"(float[2, 5, 6] x, {given}float[6, 256] w1, float[128, 3] w4) => (float y) {GQA}"
            "{ h = MatMul(x, w1) "
            f"a, pk, pv = com.microsoft.GroupQueryAttention<{options}>(h, , , , , lengths, total, "
            f"{caches}) y = MatMul(a, w4) }}"
        )
        expected = "w1:1 w4:0"
    else:
        text = (
            f"(float[2, 5, 6] x, {given}float[6, 128] w1, float[6, 64] w2, float[6, 64] w3, float[128, 3] "
            f"w4) => (float y) {GQA}"
            "{ q = MatMul(x, w1) k = MatMul(x, w2) v = MatMul(x, w3) "
            f"a, pk, pv = com.microsoft.GroupQueryAttention<{options}>(q, k, v, , , lengths, total, "
            f"{caches}) "
            "y = MatMul(a, w4) }"
        )
        expected = ALL
    check(text, expected + (" w5:1 w6:1" if rotary else ""))


def test_quantized_attention() -> None:
    check(
        "(float[2, 5, 6] x, float[6, 8] w0, int8[8, 48] w1, float[48] w2, float s1, uint8 z1, float s2, "
        "int8 z2, "
        "float[16, 3] w3) => (float y) "
        "{ h = MatMul(x, w0) q = QuantizeLinear(h, s1, z1) "
        "a = com.microsoft.QAttention<num_heads = 4>(q, w1, w2, s1, s2, , z1, z2) y = MatMul(a, w3) }",
        "w0:1 w1:0 w1:1 w2:0 w3:0",
        values={"w1": np.random.default_rng(0).integers(-90, 90, (8, 48)).astype(np.int8)},
    )


NORMS = ["SkipLayerNormalization", "SkipSimplifiedLayerNormalization"]


@pytest.mark.parametrize("operator", NORMS)
@pytest.mark.parametrize("second", [False, True])
def test_skip_normalization(operator: str, second: bool) -> None:
    affine = "w3, w4, w5" if operator == NORMS[0] else "w3, w5"
    expected = "w1:1 w2:1 w3:0 w5:0 w6:0" + (" w4:0" if operator == NORMS[0] else "")
    w4 = "float[8] w4, " if operator == NORMS[0] else ""
    outputs, use = ("n, , , t", "u = Add(n, t)") if second else ("n", "u = Identity(n)")
    check(
        f"(float[N, 5, 6] x, float[6, 8] w1, float[6, 8] w2, float[8] w3, {w4}float[8] w5, float[8, 3] w6) "
        "=> (float y) "
        f"{{ h = MatMul(x, w1) g = MatMul(x, w2) {outputs} = com.microsoft.{operator}(h, g, {affine}) {use} "
        "y = MatMul(u, w6) }",
        expected,
    )


@pytest.mark.parametrize("segments", [False, True])
def test_embedded_words(segments: bool) -> None:
    given, s = ("int32[N, 5] t, float[2, 8] w3, ", "t") if segments else ("", "")
    check(
        f"(int32[N, 5] i, {given}float[11, 8] w1, float[5, 8] w2, float[8] w4, float[8] w5, float[8, 3] "
        "w6) => (float y) "
        f"{{ h, m = com.microsoft.EmbedLayerNormalization(i, {s}, w1, w2, {'w3' if segments else ''}, w4, "
        "w5) "
        "y = MatMul(h, w6) }",
        "w1:1 w2:1 w4:0 w5:0 w6:0" + (" w3:1" if segments else ""),
        feeds={"t": np.ones((3, 5), dtype=np.int32)} if segments else None,
    )


def test_rms_norm_of_onnx_runtime() -> None:
    check(
        "(float[N, 5, 6] x, float[6, 8] w1, float[8] w2, float[8, 3] w3) => (float y) "
        "{ h = MatMul(x, w1) n = SimplifiedLayerNormalization<axis = -1, epsilon = 0.01>(h, w2) y = "
        "MatMul(n, w3) }",
        "w1:1 w2:0 w3:0",
    )


@pytest.mark.parametrize(
    "operator", ["FastGelu(h)", "FastGelu(h, w4)", "BiasGelu(h, w4)", "QuickGelu(h)", "Gelu(h)"]
)
def test_fused_activations(operator: str) -> None:
    bias = "w4" in operator
    check(
        f"(float[N, 5, 6] x, float[6, 8] w1, {'float[8] w4, ' if bias else ''}float[8, 3] w3) => (float y) "
        f"{{ h = MatMul(x, w1) n = com.microsoft.{operator} y = MatMul(n, w3) }}",
        "w1:1 w3:0" + (" w4:0" if bias else ""),
    )


@pytest.mark.parametrize(
    ("options", "shape", "axis"),
    [("transB = 1", "8, 6", 0), ("transA = 0", "6, 8", 1), ("alpha = 0.5", "6, 8", 1)],
)
def test_fused_products(options: str, shape: str, axis: int) -> None:
    check(
        f"(float[N, 5, 6] x, float[{shape}] w1, float[8, 3] w3) => (float y) "
        f"{{ h = com.microsoft.FusedMatMul<{options}>(x, w1) n = Relu(h) y = MatMul(n, w3) }}",
        f"w1:{axis} w3:0",
    )


@pytest.mark.parametrize("swap", [0, 1])
def test_products_with_transposed_batches(swap: int) -> None:
    tail = "t = Transpose<perm = [0, 1, 3, 2]>(b)" if swap else "t = Identity(b)"
    check(
        "(float[2, 5, 6] x, float[6, 12] w1, float[6, 12] w2, float[5, 3] w3) => (float y) "
        "<int64[4] k = {2, 5, 3, 4}> "
        "{ p = MatMul(x, w1) q = MatMul(x, w2) c = Reshape(p, k) d = Reshape(q, k) "
        "e = Transpose<perm = [1, 0, 2, 3]>(c) f = Transpose<perm = [0, 2, 3, 1]>(d) b = Identity(f) "
        f"{tail} h = com.microsoft.FusedMatMul<transBatchA = 1, transB = {swap}>(e, t) y = MatMul(h, w3) }}",
        "w1:1 w2:1",
    )


def test_a_fused_gemm() -> None:
    check(
        "(float[N, 6] x, float[8, 6] w1, float[8] w2, float[8, 3] w3) => (float y) "
        '{ h = com.microsoft.FusedGemm<transB = 1, activation = "Relu">(x, w1, w2) y = MatMul(h, w3) }',
        "w1:0 w2:0 w3:0",
    )


def test_a_fused_convolution_with_its_residual() -> None:
    check(
        "(float[N, 3, 6, 6] x, float[8, 3, 1, 1] w1, float[8, 4, 1, 1] w2, float[8] w3, float[8, 2] w4) => "
        "(float y) "
        '{ g = Conv(x, w1) h = com.microsoft.FusedConv<activation = "Relu", group = 2>(g, w2, w3, g) '
        "p = GlobalAveragePool(h) f = Flatten(p) y = MatMul(f, w4) }",
        "w1:0 w2:0 w2:1 w3:0 w4:0",
    )
