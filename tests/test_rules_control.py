"""If, Loop and Scan: slots go into bodies and out of them, and a pin says which node inside holds them."""

from __future__ import annotations

import numpy as np
import pytest

from sparsecc.cost.model import macs_model
from sparsecc.graph.analysis import analyse
from sparsecc.graph.explain import explain
from tests.rule_checks import check, free_members, loaded, model_of, why_pinned

LOOP = (
    "(float[N, 5, 6] x, float[6, 8] w1, float[8, 8] w2, float[8, 3] w3) => (float[N, 3] y, float[m, N, 3] z) "
    "<int64 n = {4}, bool c = {1}, int64 first = {0}> { "
    "xt = Transpose<perm = [1, 0, 2]>(x) x0 = Gather(xt, first) h0 = MatMul(x0, w1) "
    "h, hs = Loop(n, c, h0) <body = body (int64 i, bool ci, float[N, 8] hi) => "
    "(bool co, float[N, 8] ho, float[N, 8] so) { co = Identity(ci) xi = Gather(xt, i) a = MatMul(xi, w1) "
    "r = MatMul(hi, w2) s = Add(a, r) ho = Tanh(s) so = Relu(ho) }> "
    "y = MatMul(h, w3) z = MatMul(hs, w3) }"
)
SCAN = (
    "(float[N, 5, 6] x, float[6, 8] w1, float[8, 8] w2, float[8, 3] w3, float[1, 8] w4) "
    "=> (float[N, 3] y, float[N, 5, 3] z) <int64[1] axes = {1}, float nothing = {0}> { xp = MatMul(x, w1) "
    "b = ReduceMax<keepdims = 1>(xp, axes) bs = Squeeze(b, axes) zero = Mul(bs, nothing) h0 = Add(zero, w4) "
    "h, hs = Scan(h0, xp) <num_scan_inputs = 1, scan_input_axes = [1], scan_output_axes = [-2], "
    "body = body (float[N, 8] hi, float[N, 8] xi) => (float[N, 8] ho, float[N, 8] so) "
    "{ r = MatMul(hi, w2) s = Add(xi, r) ho = Tanh(s) so = Neg(ho) }> y = MatMul(h, w3) z = MatMul(hs, w3) }"
)
BRANCHES = (
    "(bool c, float[N, 6] x, float[6, 8] w1, float[8, 12] w2, float[8, 12] w3, float[12, 3] w4) "
    "=> (float[N, 3] y) { h = MatMul(x, w1) g = If(c) "
    "<then_branch = t () => (float[N, 12] p) { a = MatMul(h, w2) p = Relu(a) }, "
    "else_branch = e () => (float[N, 12] q) { b = Tanh(h) q = MatMul(b, w3) }> y = MatMul(g, w4) }"
)


def test_the_state_of_a_loop_is_one_group() -> None:
    check(LOOP, "w1:1 w2:0 w2:1 w3:0")


def test_the_state_of_a_scan_is_one_group() -> None:
    check(SCAN, "w1:1 w2:0 w2:1 w3:0 w4:1")


@pytest.mark.parametrize("condition", [True, False])
def test_branches_share_what_they_give(condition: bool) -> None:
    check(BRANCHES, "w1:1 w2:0 w2:1 w3:0 w3:1 w4:0", feeds={"c": np.asarray(condition)})


def test_scanned_backwards() -> None:
    check(
        SCAN.replace("num_scan_inputs = 1,", "num_scan_inputs = 1, scan_input_directions = [1],"),
        "w1:1 w2:0 w2:1 w3:0 w4:1",
    )


def test_a_pin_names_the_node_inside() -> None:
    text = LOOP.replace("so = Relu(ho)", "k = Det(ho) so = Relu(ho)").replace("float[N, 8]", "float[8, 8]")
    text = text.replace("float[N, 5, 6] x", "float[8, 5, 6] x")
    assert "Det" in why_pinned(text, "w2:0")


def test_a_state_that_grows_pins_the_axis_that_does() -> None:
    text = (
        "(float[N, 2, 6] x, float[6, 8] w1, float[8, 3] w2) => (float[N, k, 3] y) <int64 n = {3}, bool c = {1}> "
        "{ h0 = MatMul(x, w1) h = Loop(n, c, h0) <body = body (int64 i, bool ci, float[N, k, 8] hi) => "
        "(bool co, float[N, k, 8] ho) { co = Identity(ci) ho = Concat<axis = 1>(hi, h0) }> y = MatMul(h, w2) }"
    )
    check(text, "w1:1 w2:0")
    along = text.replace("axis = 1", "axis = 2").replace("float[8, 3] w2", "float[32, 3] w2")
    assert "axis 2 of state 'hi', whose size changes between iterations, of Loop" in why_pinned(along, "w1:1")


def test_branches_of_unequal_sizes_pin() -> None:
    text = (
        "(bool c, float[N, 6] x, float[6, 8] w1, float[6, 9] w2) => (float[N] y) <int64[1] axes = {1}> { "
        "g = If(c) <then_branch = t () => (float[N, k] p) { p = MatMul(x, w1) }, "
        "else_branch = e () => (float[N, k] q) { q = MatMul(x, w2) }> y = ReduceSum<keepdims = 0>(g, axes) }"
    )
    assert "axis 1 of output 0, whose size differs from run to run, of If" in why_pinned(text, "w1:1")


def test_nested_bodies_follow() -> None:
    text = BRANCHES.replace(
        "p = Relu(a)",
        "p = Loop(n, c, a) <body = body (int64 i, bool ci, float[N, 12] si) => (bool co, float[N, 12] so) "
        "{ co = Identity(ci) d = MatMul(si, w5) u = Add(d, a) so = Sigmoid(u) }>",
    ).replace("float[12, 3] w4)", "float[12, 3] w4, float[12, 12] w5, int64 n)")
    check(text, "w1:1 w2:0 w2:1 w3:0 w3:1 w4:0 w5:0 w5:1", feeds={"c": np.asarray(True), "n": np.asarray(3)})


def test_sizes_inside_a_body_are_mended() -> None:
    """A reshape into heads by constants, and one by a shape computed inside."""
    text = LOOP.replace(
        "so = Relu(ho)", "q = Reshape(ho, heads) s1 = Shape(ho) v = Reshape(q, s1) so = Relu(v)"
    ).replace("int64 n = {4}", "int64 n = {4}, int64[3] heads = {0, 2, 4}")
    check(text, "w1:1 w2:0 w2:1 w3:0")


def test_what_mixes_inside_a_body_is_masked_there() -> None:
    text = LOOP.replace("so = Relu(ho)", "v = LayerNormalization(ho, w5) so = Relu(v)")
    check(text.replace("float[8, 3] w3)", "float[8, 3] w3, float[8] w5)"), "w1:1 w2:0 w2:1 w3:0 w5:0")


def test_a_constant_read_inside_and_outside_is_sliced_for_both() -> None:
    text = LOOP.replace("a = MatMul(xi, w1)", "o = MatMul(xi, w1) a = Add(o, w5)")
    text = text.replace("h0 = MatMul(x0, w1)", "hx = MatMul(x0, w1) hy = Tanh(hx) h0 = Add(hy, w5)")
    text = text.replace("float[8, 3] w3)", "float[8, 3] w3, float[8] w5)")
    model = check(text, "w1:1 w2:0 w2:1 w3:0 w5:0")
    assert sum(v.name.startswith("w5") for v in model.graph.initializers.values() if v.name) == 1


def test_products_count_once_per_iteration() -> None:
    model = loaded(model_of(LOOP))
    analysis = analyse(model)
    assert macs_model(analysis).total({}) == 2 * (6 * 8 + 4 * (6 * 8 + 8 * 8) + 8 * 3 + 4 * 8 * 3)
    assert not analysis.record.counted_once
    unknown = analyse(
        loaded(
            model_of(
                LOOP.replace("float[8, 3] w3)", "float[8, 3] w3, int64 n)").replace("int64 n = {4}, ", "")
            )
        )
    )
    assert [n.op_type for n in unknown.record.counted_once] == ["Loop"]
    assert macs_model(unknown).total({}) == 2 * (6 * 8 + (6 * 8 + 8 * 8) + 8 * 3 + 8 * 3)


def test_a_chain_of_reasons_leads_through_a_body() -> None:
    found = explain(analyse(loaded(model_of(LOOP))), "w2:0")
    assert set(found["coupled"]) == {"w1:1", "w2:1", "w3:0"}


def test_unknown_state_pins() -> None:
    text = "(seq(float[N, 6]) q, float[N, 6] x, float[6, 8] w1) => (seq(float[N, 8]) t) "
    text += (
        "<int64 n = {3}, bool c = {1}> { h = MatMul(x, w1) t = Loop(n, c, q) <body = body (int64 i, bool ci, "
        "seq(float[N, 8]) si) => (bool co, seq(float[N, 8]) so) { co = Identity(ci) so = SequenceInsert(si, h) }> }"
    )
    assert "holds a sequence" in why_pinned(text, "w1:1")
    assert free_members(analyse(loaded(model_of(text)))) == set()


def test_a_mapped_sequence_pins() -> None:
    text = (
        "(float[4, 6] x, float[6, 8] w1) => (seq(float[8]) t) { h = MatMul(x, w1) s = SplitToSequence<keepdims=0>(h) "
        "t = SequenceMap(s) <body = body (float[8] si) => (float[8] so) { so = Relu(si) }> }"
    )
    assert why_pinned(text, "w1:1")


PICKED = (
    "({x} x, float[6, 8] w1, float[16, 3] w2) => ({y} y) <int64[1] ax = {1}, int64[1] first = {0}, "
    "int64[1] flat = {-1}, int64 zero = {0}, int64 one = {1}, float low = {0.5}> { h = MatMul(x, w1) "
    "m = ReduceMax<keepdims = 0>(x, ax) b = Greater(m, low) nz = NonZero(b) ix = Squeeze(nz, first) "
    "g = Gather(h, ix) gg = Concat<axis = 1>(g, g) s = Shape(gg) s0 = Gather(s, zero) s1 = Gather(s, one) "
    "p = Mul(s0, s1) q = Reshape(p, flat) r = Reshape(gg, q) "
)


@pytest.mark.parametrize("batch", ["8", "N"])
def test_sizes_that_only_the_data_knows_are_dynamic(batch: str) -> None:
    """A reshape by a computed size of rows that NonZero picked, also where all inputs are static."""
    text = PICKED.replace("{x}", f"float[{batch}, 6]").replace("{y}", "float[k, 3]")
    check(text + "u = Relu(r) v = Reshape(u, s) y = MatMul(v, w2) }", "w1:1 w2:0")


def test_sums_over_what_only_the_data_counts_pin() -> None:
    text = (
        PICKED.replace("{x}", "float[N, 6]").replace("{y}", "float").replace("float[16, 3] w2", "float[2] w2")
    )
    reason = why_pinned(
        text + "u = ReduceMean<keepdims = 0>(r) y0 = Mul(u, w2) y = ReduceMax<keepdims = 0>(y0) }", "w1:1"
    )
    assert "as many others as the data says" in reason


def test_a_shape_that_is_an_output_stays_dense() -> None:
    text = "(float[N, 6] x, float[6, 8] w1, float[8, 3] w2) => (float[N, 3] y, int64[2] s) "
    check(text + "{ h = MatMul(x, w1) s = Shape(h) y = MatMul(h, w2) }", "w1:1 w2:0")


def test_a_shape_handed_out_of_a_body_stays_dense() -> None:
    text = (
        "(bool c, float[N, 6] x, float[6, 8] w1, float[8, 3] w2) => (float[N, 3] y, int64[2] s) { "
        "h = MatMul(x, w1) s = If(c) <then_branch = t () => (int64[2] p) { p = Shape(h) }, "
        "else_branch = e () => (int64[2] q) { r = Relu(h) q = Shape(r) }> y = MatMul(h, w2) }"
    )
    check(text, "w1:1 w2:0", feeds={"c": np.asarray(True)})


def test_a_state_that_starts_as_a_weight_and_a_body_that_swaps() -> None:
    text = (
        "(float[2, 6] x, float[6, 8] w1, float[8, 3] w2, float[2, 8] w3) => (float[2, 3] y) "
        "<int64 n = {3}, bool c = {1}> { h = MatMul(x, w1) s, t = Loop(n, c, h, w3) <body = body (int64 i, bool ci, "
        "float[2, 8] a, float[2, 8] b) => (bool ci, float[2, 8] b, float[2, 8] d) { d = Neg(a) }> "
        "u = Add(s, t) y = MatMul(u, w2) }"
    )
    check(text, "w1:1 w3:1 w2:0")


def test_a_condition_that_looks_at_slots_is_masked() -> None:
    text = LOOP.replace("co = Identity(ci) ", "").replace(
        "so = Relu(ho) }", "so = Relu(ho) m = ReduceMax<keepdims = 0>(ho) co = Less(m, w5) }"
    )
    check(text.replace("float[8, 3] w3)", "float[8, 3] w3, float w5)"), "w1:1 w2:0 w2:1 w3:0")


def test_a_branch_that_is_a_constant() -> None:
    numbers = ", ".join(str(n * n % 7 / 10) for n in range(24))
    text = BRANCHES.replace(
        "b = Tanh(h) q = MatMul(b, w3)", f"q = Constant<value = float[2, 12] {{{numbers}}}>()"
    )
    text = text.replace("float[8, 12] w3, ", "").replace("float[N,", "float[2,")
    for condition in (True, False):
        check(text, "w1:1 w2:0 w2:1 q:1 w4:0", feeds={"c": np.asarray(condition)})


def test_a_loop_that_starts_from_a_weight_is_no_constant() -> None:
    text = (
        "(float[2, 6] x, float[6, 8] w1, float[8, 3] w2, float[2, 8] w3) => (float[2, 3] y) "
        "<int64 n = {3}, bool c = {1}> { h = MatMul(x, w1) s = Loop(n, c, w3) <body = body (int64 i, bool ci, "
        "float[2, 8] a) => (bool ci, float[2, 8] d) { d = Add(a, h) }> y = MatMul(s, w2) }"
    )
    check(text, "w1:1 w3:1 w2:0")
    assert not {"s", "y"} & {v.name for v in analyse(loaded(model_of(text))).record.constant}
