"""Sequences that only pass tensors on are splits: what `chunk` and `unbind` export to costs no coverage."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from sparsecc.graph.analysis import analyse
from sparsecc.graph.groups import find_groups
from sparsecc.loading.normalise import normalise
from tests.test_traps import outputs, proto_of, prune, random

CHUNKED = """agraph (float[N, 6] x) => (float[N, 3] y)
    <int64 eight = {8}, int64 zero = {0}, int64 last = {-1}> {
    h = Gemm(x, first, bias)
    parts = SplitToSequence<axis = -1>(h, SPLIT)
    a = SequenceAt(parts, zero) b = SequenceAt(parts, last)
    c = Relu(b) d = Mul(a, c) y = MatMul(d, second) }"""


def chunked(split: str, opset: int) -> onnx.ModelProto:
    text = CHUNKED.replace("SPLIT", split)
    proto = proto_of(
        text, opset, first=random(6, 16), bias=random(16), second=random(8, 3), sizes=np.asarray([8, 8])
    )
    proto.graph.value_info.add(name="h").type.tensor_type.elem_type = 1
    for size in ("N", 16):
        dim = proto.graph.value_info[0].type.tensor_type.shape.dim.add()
        if isinstance(size, int):
            dim.dim_value = size
        else:
            dim.dim_param = size
    return proto


@pytest.mark.parametrize("opset", [11, 18])
@pytest.mark.parametrize("split", ["eight", "sizes"])
def test_halves_taken_from_a_sequence_lose_the_same_slots(split: str, opset: int) -> None:
    model = prune(chunked(split, opset), (2, 6), (5, 6), removed={"first", "bias", "second"})
    assert "SplitToSequence" not in {node.op_type for node in model.graph}


UNBOUND = """agraph (float[N, 6] x) => (float[N, 3] y)
    <int64 zero = {0}, int64 one = {1}, int64[3] shape = {0, 2, 8}> {
    h = MatMul(x, first)
    stacked = Reshape(h, shape)
    parts = SplitToSequence<axis = 1, keepdims = 0>(stacked)
    a = SequenceAt(parts, zero) b = SequenceAt(parts, one)
    d = Mul(a, b) y = MatMul(d, second) }"""


def test_an_axis_that_the_sequence_drops_is_squeezed() -> None:
    proto = proto_of(UNBOUND, first=random(6, 16), second=random(8, 3))
    proto.graph.value_info.add(name="stacked").type.tensor_type.elem_type = 1
    for size in (0, 2, 8):
        proto.graph.value_info[0].type.tensor_type.shape.dim.add(**({"dim_value": size} if size else {}))
    prune(proto, (2, 6), (5, 6), removed={"first", "second"})


def test_a_position_known_at_run_time_alone_leaves_the_sequence() -> None:
    text = CHUNKED.replace("SPLIT", "eight").replace("(float[N, 6] x)", "(float[N, 6] x, int64 which)")
    proto = proto_of(
        text.replace("SequenceAt(parts, zero)", "SequenceAt(parts, which)"),
        first=random(6, 16), bias=random(16), second=random(8, 3),
    )  # fmt: skip
    feeds = {"x": random(2, 6), "which": np.asarray(1)}
    before = outputs(ir.from_proto(proto), feeds)
    model = normalise(ir.from_proto(proto))
    assert "SequenceAt" in {node.op_type for node in model.graph}
    assert not any(g.is_free for g in find_groups(analyse(model)))
    np.testing.assert_array_equal(outputs(model, feeds)[0], before[0])
