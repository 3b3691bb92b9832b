"""If: a branch that is always taken takes its place; otherwise slots pass through both."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir

from sparsecc.graph.analysis import analyse
from sparsecc.graph.constant_if import take_known_branches
from tests.rule_checks import check, feeds_of, free_members, loaded, model_of, run

BY_RANK = (
    "(float[N, 6] x, float[6, 8] w1, float[8] w3, float[8, 3] w2) => (float y) <int64 zero = {0}> "
    "{ h = MatMul(x, w1) s = Shape(h) r = Size(s) two = Cast<to = 7>(r) c = Equal(two, {limit}) "
    "a = If(c) <then_branch = then () => (float[n, m] t) { one = Add(h, w3) t = Relu(one) }, "
    "else_branch = other () => (float[n, m] e) { e = Identity(h) }> y = MatMul(a, w2) }"
)


def by_rank(limit: int) -> str:
    return BY_RANK.replace("{limit}", "limit").replace("int64 zero = {0}", f"int64 limit = {{{limit}}}")


def test_a_known_branch_takes_the_place_of_its_if() -> None:
    for limit, free in ((2, {"w1:1", "w2:0", "w3:0"}), (3, {"w1:1", "w2:0"})):
        proto = model_of(by_rank(limit))
        model, dense = loaded(proto), loaded(proto)
        assert take_known_branches(model) == 1
        assert all(n.op_type != "If" for n in model.graph)
        assert free_members(analyse(model)) == free
        feeds = feeds_of(proto)
        np.testing.assert_array_equal(run(model, feeds)[0], run(dense, feeds)[0])
        onnx.checker.check_model(ir.serde.serialize_model(model))


def test_slots_pass_through_both_branches_of_an_unknown_condition() -> None:
    text = by_rank(2).replace("(float[N, 6] x", "(bool c, float[N, 6] x").replace("c = Equal(two, limit)", "")
    assert take_known_branches(loaded(model_of(text))) == 0
    for condition in (True, False):
        check(text, "w1:1 w2:0 w3:0", feeds={"c": np.asarray(condition)})


def test_a_branch_that_is_an_output_keeps_its_name() -> None:
    text = by_rank(2).replace(" y = MatMul(a, w2) }", " }").replace("=> (float y)", "=> (float a)", 1)
    proto = model_of(text)
    model = loaded(proto)
    assert take_known_branches(model) == 1
    assert [v.name for v in model.graph.outputs] == ["a"]
    feeds = feeds_of(proto)
    np.testing.assert_array_equal(run(model, feeds)[0], run(loaded(proto), feeds)[0])


def test_nested_branches() -> None:
    inner = (
        "If(c) <then_branch = t2 () => (float[n, m] p) { p = Abs(h) }, "
        "else_branch = e2 () => (float[n, m] q) { q = Neg(h) }>"
    )
    text = by_rank(2).replace("one = Add(h, w3) t = Relu(one)", f"one = {inner} t = Relu(one)")
    proto = model_of(text)
    model = loaded(proto)
    assert take_known_branches(model) == 2
    assert free_members(analyse(model)) >= {"w1:1", "w2:0"}
    feeds = feeds_of(proto)
    np.testing.assert_array_equal(run(model, feeds)[0], run(loaded(proto), feeds)[0])


def test_shapes_that_lie_are_not_believed() -> None:
    text = by_rank(2).replace("(float[N, 6] x", "(bool c, float[N, 6] x").replace("c = Equal(two, limit)", "")
    text = text.replace("() => (float[n, m] t)", "() => (float t)").replace(
        "() => (float[n, m] e)", "() => (float e)"
    )
    assert free_members(analyse(loaded(model_of(text)))) == {"w1:1", "w2:0", "w3:0"}


def test_a_condition_that_only_happens_to_agree_is_not_taken() -> None:
    """`rows > 1000` is false at every size that is tried, and true for some input all the same."""
    text = by_rank(2).replace(
        "r = Size(s) two = Cast<to = 7>(r) c = Equal(two, limit)", "c = Greater(rows, big)"
    )
    text = text.replace("int64 limit = {2}", "int64 big = {1000}, int64 first = {0}")
    text = text.replace("s = Shape(h) ", "s = Shape(h) rows = Gather(s, first) ")
    assert take_known_branches(loaded(model_of(text))) == 0
