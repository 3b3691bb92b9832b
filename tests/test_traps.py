"""Traps of real files: sharing, weights that are inputs, hidden scales, stale shapes, missing names.

Every trap is pruned at random and compared with the masked dense model (`tests/rule_checks.py`).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

import sparsecc
from sparsecc.graph.analysis import analyse
from sparsecc.graph.groups import find_groups
from sparsecc.graph.rewrite import remove
from sparsecc.loading.normalise import normalise
from sparsecc.reference.masked_channels import masked
from tests.pruning import random_half

SEED = np.random.default_rng(0)


def proto_of(text: str, opset: int = 18, ir_version: int = 8, **weights: np.ndarray) -> onnx.ModelProto:
    """The graph in `text` with these weights (shapes alone give random ones)."""
    model = parser.parse_model(f'<ir_version: {ir_version}, opset_import: ["": {opset}]> ' + text)
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in weights.items())
    return model


def random(*shape: int) -> np.ndarray:
    return SEED.normal(0, 0.6, shape).astype(np.float32)


def outputs(model: ir.Model, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    data = ir.to_proto(model).SerializeToString()
    return list(ort.InferenceSession(data, options, providers=["CPUExecutionProvider"]).run(None, feeds))


def prune(
    proto: onnx.ModelProto, *sizes: tuple[int, ...], removed: set[str] | None = None, seed: int = 0
) -> ir.Model:
    """Remove a random half of every free group; compare at every input size; the pruned model.

    `removed` are the weights that must have got smaller (all that do, where given).
    """
    model = normalise(ir.from_proto(proto))
    before = {n: tuple(v.shape or ()) for n, v in model.graph.initializers.items()}
    analysis = analyse(model)
    keep = random_half(find_groups(analysis), seed)
    assert keep, "nothing is free"
    dense = masked(analysis, keep)
    remove(analysis, keep)
    fed = {i.name for i in proto.graph.input} - {i.name for i in proto.graph.initializer}
    for size in sizes:
        feeds = {name: np.random.default_rng(1).normal(0, 1, size).astype(np.float32) for name in fed}
        for wanted, found in zip(outputs(dense, feeds), outputs(model, feeds), strict=True):
            assert np.ptp(wanted) > 0
            np.testing.assert_allclose(found, wanted, atol=1e-5 * float(np.abs(wanted).max()))
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    if removed is not None:
        after = {n: tuple(v.shape or ()) for n, v in model.graph.initializers.items()}
        assert {n for n in before if after.get(n) != before[n]} == removed
    return model


# Constants with several readers ----------------------------------------------------------------------

TWO_LAYERS = """agraph (float[N, 6] x) => (float[N, 3] y) {
    a = Gemm(x, first, bias)
    b = Relu(a)
    c = Gemm(b, second, bias)
    d = Relu(c)
    y = MatMul(d, last)
}"""


def test_a_bias_that_two_layers_share_couples_nothing() -> None:
    """Both layers lose their own slots; each gets its own copy of the bias."""
    proto = proto_of(TWO_LAYERS, first=random(6, 8), second=random(8, 8), bias=random(8), last=random(8, 3))
    model = prune(proto, (2, 6), (5, 6), removed={"first", "second", "bias", "last"})
    biases = {n.inputs[2].name for n in model.graph if n.op_type == "Gemm" and n.inputs[2] is not None}
    assert len(biases) == 2
    assert "bias" not in biases


def test_a_small_weight_that_two_layers_share_gets_two_forms() -> None:
    text = """agraph (float[N, 6] x) => (float[N, 6] y) {
        a = MatMul(x, w)
        b = Relu(a)
        c = MatMul(b, w)
        d = Relu(c)
        y = MatMul(d, w)
    }"""
    prune(proto_of(text, w=random(6, 6)), (2, 6))


def test_a_large_weight_that_two_layers_share_stays_one() -> None:
    text = """agraph (float[N, 6] x) => (float[N, 3] y) {
        a = MatMul(x, into)
        b = MatMul(a, shared)
        c = Relu(b)
        d = MatMul(c, shared)
        y = MatMul(d, out)
    }"""
    weights = {"into": random(6, 64), "shared": random(64, 64), "out": random(64, 3)}
    model = prune(proto_of(text, 18, 8, **weights), (2, 6), removed=set(weights))
    assert tuple(model.graph.initializers["shared"].shape or ()) == (32, 32)
    assert len(model.graph.initializers) == 3


def test_a_reshape_target_that_two_nodes_share() -> None:
    """One reader loses slots, the other's shape stays: the target must not change for both."""
    text = """agraph (float[N, 6] x) => (float[N, 2, 4] y, float[N, 2, 4] z) {
        a = MatMul(x, first)
        b = Reshape(a, shape)
        c = ReduceSum(b, axes)
        z = Reshape(d, shape)
        d = MatMul(x, plain)
        e = Squeeze(c, axes)
        f = MatMul(e, last)
        y = Reshape(f, shape)
    }"""
    lines = text.splitlines()
    lines[4], lines[5] = lines[5], lines[4]
    shape, axes = np.array([-1, 2, 4]), np.array([1])
    proto = proto_of(
        "\n".join(lines),
        first=random(6, 8),
        plain=random(6, 8),
        last=random(4, 8),
        shape=shape,
        axes=axes,
    )
    model = prune(proto, (2, 6), (3, 6))
    assert {"first", "last"} <= set(model.graph.initializers)


def test_split_sizes_that_two_nodes_share() -> None:
    text = """agraph (float[N, 6] x) => (float[N, 3] y, float[N, 4] u) {
        a = MatMul(x, first)
        b, c = Split <axis = 1> (a, sizes)
        d = Mul(b, c)
        y = MatMul(d, last)
        e = MatMul(x, plain)
        u, v = Split <axis = 1> (e, sizes)
    }"""
    sizes = np.array([4, 4])
    weights = {"first": random(6, 8), "last": random(4, 3), "plain": random(6, 8)}
    prune(proto_of(text, 18, 8, sizes=sizes, **weights), (2, 6))


# Weights that are inputs -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ir_version", "listed", "left"),
    [
        (3, ("first", "second", "bias", "last"), 0),
        (7, ("first", "second", "bias", "last"), 0),
        (7, ("last",), 1),
    ],
)
def test_weights_listed_as_inputs_are_pruned(ir_version: int, listed: tuple[str, ...], left: int) -> None:
    """One that alone can be overridden stays listed; where most are, that is the exporter's way to write constants."""
    proto = proto_of(
        TWO_LAYERS, ir_version=ir_version, opset=8, first=random(6, 8), second=random(8, 8), bias=random(8),
        last=random(8, 3),
    )  # fmt: skip
    for tensor in proto.graph.initializer:
        if tensor.name in listed:
            value = helper.make_tensor_value_info(tensor.name, TensorProto.FLOAT, list(tensor.dims))
            proto.graph.input.append(value)
    model = prune(proto, (2, 6), removed={"first", "second", "bias", "last"})
    shapes = {i.name: tuple(i.shape or ()) for i in model.graph.inputs[1:]}
    assert len(shapes) == left
    for name, shape in shapes.items():
        assert shape == tuple(model.graph.initializers[name or ""].shape or ())


# Scales ----------------------------------------------------------------------------------------------

ATTENTION = """agraph (float[N, L, 12] x) => (float[N, L, 12] y) {
    q0 = MatMul(x, wq)
    k0 = MatMul(x, wk)
    v0 = MatMul(x, wv)
    q1 = Reshape(q0, split)
    k1 = Reshape(k0, split)
    v1 = Reshape(v0, split)
    q = Transpose <perm = [0, 2, 1, 3]> (q1)
    k = Transpose <perm = [0, 2, 3, 1]> (k1)
    v = Transpose <perm = [0, 2, 1, 3]> (v1)
    raw = MatMul(q, k)
    %s
    p = Softmax <axis = -1> (scores)
    o = MatMul(p, v)
    t = Transpose <perm = [0, 2, 1, 3]> (o)
    m = Reshape(t, merge)
    y = MatMul(m, wo)
}"""
SCALES = {
    "constant": "scores = Div(raw, scale)",
    "shape": """dims = Shape(q)
    width = Gather <axis = 0> (dims, minus)
    real = Cast <to = 1> (width)
    root = Sqrt(real)
    scores = Div(raw, root)""",
    "shape attribute": """dims = Shape <start = -1> (q)
    real = Cast <to = 1> (dims)
    root = Sqrt(real)
    scores = Div(raw, root)""",
    "ratio of sizes": """dims = Shape(q)
    width = Gather <axis = 0> (dims, minus)
    all = Size(q)
    every = Size(k)
    one = Div(all, every)
    same = Mul(one, width)
    real = Cast <to = 1> (same)
    root = Sqrt(real)
    scores = Div(raw, root)""",
}


@pytest.mark.parametrize("form", SCALES)
def test_the_scale_of_attention_stays_that_of_the_dense_width(form: str) -> None:
    proto = proto_of(
        ATTENTION % SCALES[form],
        wq=random(12, 24),
        wk=random(12, 24),
        wv=random(12, 24),
        wo=random(24, 12),
        split=np.array([0, 0, 4, 6]),
        merge=np.array([0, 0, 24]),
        scale=np.array(6**0.5, dtype=np.float32),
        minus=np.array(-1),
    )
    model = normalise(ir.from_proto(proto))
    sizes = sorted(g.size for g in find_groups(analyse(model)) if g.is_free)
    assert sizes == [4, 6, 6]
    prune(proto, (2, 5, 12), (3, 7, 12), removed={"wq", "wk", "wv", "wo", "split", "merge"} & _weights(proto))


def _weights(proto: onnx.ModelProto) -> set[str]:
    return {i.name for i in proto.graph.initializer if len(i.dims) == 2}


# Shapes and names ------------------------------------------------------------------------------------

CONVOLUTIONS = """agraph (float[N, 3, H, W] x) => (float[N, 4] y) {
    a = Conv <pads = [1, 1, 1, 1]> (x, first)
    b = Relu(a)
    c = Conv <pads = [1, 1, 1, 1]> (b, second)
    d = GlobalAveragePool(c)
    e = Flatten(d)
    y = MatMul(e, last)
}"""


def convolutions() -> onnx.ModelProto:
    return proto_of(CONVOLUTIONS, first=random(8, 3, 3, 3), second=random(8, 8, 3, 3), last=random(8, 4))


def test_stale_value_info_is_not_believed_nor_kept() -> None:
    proto = convolutions()
    for name, width in (("a", 8), ("c", 99), ("d", 99)):
        value = helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", width, "H", "W"])
        proto.graph.value_info.append(value)
    model = prune(proto, (2, 3, 8, 8), (3, 3, 5, 9), removed={"first", "second", "last"})
    assert all(v.shape is None for n in model.graph for v in n.outputs if v.name != "y")


def test_nodes_need_no_names() -> None:
    proto = convolutions()
    assert {n.name for n in proto.graph.node} == {""}
    model = prune(proto, (1, 3, 6, 6), removed={"first", "second", "last"})
    names = [n.name for n in model.graph]
    assert len(set(names)) == len(names)


def test_node_names_may_repeat() -> None:
    proto = convolutions()
    for node in proto.graph.node:
        node.name = "layer"
    model = prune(proto, (1, 3, 6, 6), removed={"first", "second", "last"})
    names = [n.name for n in model.graph]
    assert len(set(names)) == len(names)


def test_constants_may_be_nodes() -> None:
    proto = convolutions()
    for tensor in list(proto.graph.initializer):
        proto.graph.node.insert(0, helper.make_node("Constant", [], [tensor.name], value=tensor))
    del proto.graph.initializer[:]
    model = prune(proto, (1, 3, 6, 6), removed={"first", "second", "last"})
    assert "Constant" not in {n.op_type for n in model.graph}


# Dynamic dimensions ----------------------------------------------------------------------------------


def test_a_compiled_model_takes_every_batch_and_size(tmp_path: Path) -> None:
    """Flattened by arithmetic on shapes at run time, as exporters write it."""
    text = """agraph (float[N, 3, H, W] x) => (float[N, 4] y) {
        a = Conv <pads = [1, 1, 1, 1]> (x, first)
        b = Relu(a)
        c = GlobalAveragePool(b)
        dims = Shape(c)
        batch = Gather <axis = 0> (dims, zero)
        one = Unsqueeze(batch, front)
        target = Concat <axis = 0> (one, width)
        e = Reshape(c, target)
        y = MatMul(e, last)
    }"""
    proto = proto_of(
        text,
        first=random(32, 3, 3, 3),
        last=random(32, 4),
        zero=np.array(0),
        front=np.array([0]),
        width=np.array([32]),
    )
    made = sparsecc.compile(proto, ratio=0.5, measure=False, output=tmp_path / "out")
    assert made.report["removed"]["share"] == pytest.approx(0.5, abs=0.03)
    session = ort.InferenceSession(tmp_path / "out" / "model.onnx", providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == ["N", 3, "H", "W"]
    for shape in ((1, 3, 8, 8), (7, 3, 8, 8), (2, 3, 5, 31)):
        (found,) = session.run(None, {"x": np.ones(shape, dtype=np.float32)})
        assert found.shape == (shape[0], 4)
