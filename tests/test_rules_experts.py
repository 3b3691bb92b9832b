"""Mixtures whose experts are chosen by nodes of their own: Softmax, TopK and a gather from stacked weights."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from sparsecc import compile
from sparsecc.graph.analysis import analyse
from sparsecc.graph.groups import find_groups
from tests.rule_checks import check, loaded, model_of, why_pinned

HEAD = (
    "(float[N, 6] x, float[6, 8] w0, float[8, 5] w1, float[5, 10, 8] w2, float[5, 8, 10] w3, float[5, 10] w4, "
    "float[8, 3] w9) => (float y) "
    "<int64[1] two = {2}, int64[1] last = {-1}, int64[1] one = {1}, "
    "int64[1] flat = {-1}> { h = MatMul(x, w0) r = MatMul(h, w1) "
)
TAIL = (
    "t = Unsqueeze(h, one) e = Unsqueeze(t, last) u = MatMul(a, e) v = Squeeze(u, last) g = Add(v, k) "
    "z = Relu(g) f = Unsqueeze(z, last) d = MatMul(b, f) o = Squeeze(d, last) q = Unsqueeze(p, last) "
    "m = Mul(o, q) n = ReduceSum<keepdims = 0>(m, one) y = MatMul(n, w9) }"
)
GATHERED = "a = Gather(w2, i) b = Gather(w3, i) k = Gather(w4, i) "
FREE = "w0:1 w1:0 w1:1 w2:0 w2:1 w2:2 w3:0 w3:1 w3:2 w4:0 w4:1 w9:0"

ROUTERS = {
    "softmax first": "s = Softmax(r) p, i = TopK(s, two) ",
    "softmax last": "c, i = TopK(r, two) p = Softmax(c) ",
    "sigmoid, chosen by a biased score": "s = Sigmoid(r) j = Add(s, w5) c, i = TopK(j, two) "
    "p = GatherElements<axis = 1>(s, i) ",
}


def mixture(router: str, gathered: str = GATHERED) -> str:
    header = HEAD.replace("float[8, 3] w9", "float[5] w5, float[8, 3] w9") if "w5" in router else HEAD
    return header + router + gathered + TAIL


@pytest.mark.parametrize("router", list(ROUTERS))
def test_experts_go_with_their_scores(router: str) -> None:
    text = mixture(ROUTERS[router])
    check(text, FREE + (" w5:0" if "w5" in text else ""))


def test_numbers_may_be_moved_before_they_pick() -> None:
    moved = (
        "i32 = Cast<to = 6>(i) c = Reshape(i32, flat) "
        "a1 = Gather(w2, c) b1 = Gather(w3, c) k1 = Gather(w4, c) "
        "sa = Constant<value_ints = [-1, 2, 10, 8]>() sb = Constant<value_ints = [-1, 2, 8, 10]>() "
        "sk = Constant<value_ints = [-1, 2, 10]>() a = Reshape(a1, sa) b = Reshape(b1, sb) k = Reshape(k1, sk) "
    )
    check(mixture(ROUTERS["softmax first"], moved), FREE)


def test_picked_by_gather_nd() -> None:
    picked = "j = Unsqueeze(i, last) a = GatherND(w2, j) b = GatherND(w3, j) k = GatherND(w4, j) "
    check(mixture(ROUTERS["softmax first"], picked), FREE)


@pytest.mark.parametrize(
    ("read", "reason"),
    [
        ("i2 = Cast<to = 1>(i) p = Mul(p0, i2) ", "read as data"),
        (
            "zero = Constant<value_int = 0>() i2 = Sub(i, i) j = Cast<to = 1>(i2) p = Add(p0, j) ",
            "read as data",
        ),
        ("w = Gather(wx, i) p = Mul(p0, w) ", "cannot be aligned"),
    ],
)
def test_numbers_used_otherwise_pin_the_experts(read: str, reason: str) -> None:
    text = mixture("s = Softmax(r) p0, i = TopK(s, two) " + read)
    text = text.replace("float[8, 3] w9", "float[8, 3] w9, float[7] wx")
    assert reason in why_pinned(text, "w1:1")
    assert reason in why_pinned(text, "w2:0")
    check(text, FREE.replace(" w1:1", "").replace(" w2:0", "").replace(" w3:0", "").replace(" w4:0", ""))


def test_numbers_at_an_output_pin_the_experts() -> None:
    text = mixture(ROUTERS["softmax first"]).replace("=> (float y)", "=> (float y, int64 i)")
    assert "numbers of its slots reach graph output 'i'" in why_pinned(text, "w2:0")


def test_numbers_read_in_a_body_that_is_not_followed_pin_the_experts() -> None:
    body = (
        "l1 = SequenceConstruct(x) o1 = SequenceMap(l1) <body = each (float[A, B] s1) => (float[C, 2] u1) "
        "{ u1 = Cast<to = 1>(i) }> "
    )
    assert "it maps a body" in why_pinned(mixture(ROUTERS["softmax first"] + body), "w2:0")


def test_a_table_looked_up_by_numbers_is_no_mixture() -> None:
    text = (
        "(float[N, 6] x, float[6, 8] w0, float[8, 4] w1, float[4, 2] w9) => (float y) <int64[1] two = {2}> "
        "{ r = MatMul(x, w0) s = Softmax(r) p, i = TopK(s, two) e = Gather(w1, i) y = MatMul(e, w9) }"
    )
    assert "normalised by Softmax" in why_pinned(text, "w0:1")
    check(text, "w1:1 w9:0")


def test_the_smallest_scores_are_not_followed() -> None:
    text = mixture(ROUTERS["softmax first"].replace("TopK(", "TopK<largest = 0>("))
    assert "searched axis" in why_pinned(text, "w1:1")


def test_kinds_and_least() -> None:
    analysis = analyse(loaded(model_of(mixture(ROUTERS["softmax first"]))))
    kinds = {g.size: (g.kind, g.least) for g in find_groups(analysis) if g.is_free}
    assert kinds == {5: ("expert", 2), 8: ("channel", 1), 10: ("channel", 1)}


ALL_RUN = (
    "(float[N, 6] x, float[6, 8] w0, float[8, 5] w1, float[5, 8, 10] w2, float[5, 10, 8] w3, float[8, 3] w9) "
    "=> (float y) <int64[1] two = {2}, int64[1] zero = {0}, int64[1] last = {-1}> { h = MatMul(x, w0) "
    "r = MatMul(h, w1) s = Sigmoid(r) p, i = TopK(s, two) k = Shape(s) e = ConstantOfShape(k) "
    "g = ScatterElements<axis = 1>(e, i, p) u = Unsqueeze(h, zero) a = MatMul(u, w2) z = Relu(a) "
    "d = MatMul(z, w3) t = Transpose<perm = [1, 0]>(g) q = Unsqueeze(t, last) m = Mul(d, q) "
    "n = ReduceSum<keepdims = 0>(m, zero) y = MatMul(n, w9) }"
)
"""All experts run; the gates of the chosen ones are written among zeros."""


def test_gates_written_among_zeros() -> None:
    check(ALL_RUN, "w0:1 w1:0 w1:1 w2:0 w2:1 w2:2 w3:0 w3:1 w3:2 w9:0")


def test_as_many_experts_stay_as_are_chosen(tmp_path: Path) -> None:
    path = tmp_path / "mixture.onnx"
    onnx.save(model_of(mixture(ROUTERS["softmax first"])), path)
    report = compile(
        path, output=tmp_path / "out", ratio=0.9, metric="params", prune=("experts",), measure=False
    ).report
    experts = [g for g in report["groups"] if g["kind"] == "expert"]
    assert [(g["size"], g["kept"]) for g in experts] == [(5, 2)]
