"""Weights that nodes compute: found by every pass as if they had been stored."""

from __future__ import annotations

import itertools
import re
import tracemalloc
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from sparsecc.cost.model import params_model
from sparsecc.graph.groups import find_groups
from sparsecc.graph.linear_layers import CONSTANT_FIRST, SINGLE_OR_HALF
from sparsecc.ir.graph_editor import prepare
from sparsecc.loading.constant_weights import LARGEST, MOST_NODES, store_operands
from sparsecc.loading.models import load_ir
from sparsecc.loading.normalise import FIXED, normalise
from sparsecc.passes.weights.linear_layers import find_layers
from sparsecc.shapes.infer import evaluated

from .repair_models import analysed, normal
from .zoo.export import onnx_path

HEAD = '<ir_version: 10, opset_import: ["" : 20]>'


def model_of(
    body: str, shapes: Mapping[str, tuple[int, ...]], inputs: str = "float[n, 8] x", opset: int = 20
) -> ir.Model:
    """A model with random weights of these shapes."""
    tensors = [
        ir.tensor(np.random.default_rng(i).standard_normal(shape).astype(np.float32), name=name)
        for i, (name, shape) in enumerate(shapes.items())
    ]
    head = HEAD.replace("20", str(opset))
    text = f"{head} g ({inputs}) => (float[n, m] y) {{ {body} }}"
    model = ir.from_onnx_text(text, initializers=tensors)
    prepare(model)
    return model


def run(model: ir.Model, feeds: Mapping[str, np.ndarray]) -> np.ndarray:
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, dict(feeds))[0])


def kinds(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def test_a_weight_behind_a_transpose_is_turned() -> None:
    model = model_of("t = Transpose(w) y = MatMul(x, t)", {"w": (4, 8)})
    feeds = {"x": np.random.default_rng(9).standard_normal((3, 8)).astype(np.float32)}
    before = run(model, feeds)
    store_operands(model)
    assert kinds(model) == ["MatMul"]
    assert {name: tuple(v.shape or ()) for name, v in model.graph.initializers.items()} == {"w.T": (8, 4)}
    np.testing.assert_array_equal(run(model, feeds), before)


@pytest.mark.parametrize(
    ("body", "kept"),
    [
        ("t = Transpose(w) a = MatMul(x, t) y = MatMul(a, w)", "tied: another layer reads it as it is"),
        (
            "t = Transpose(w) a = MatMul(x, t) b = Relu(t) c = MatMul(x, b) y = Add(a, c)",
            "read by others too",
        ),
    ],
)
def test_a_transpose_that_others_depend_on_stays(body: str, kept: str) -> None:
    model = model_of(body, {"w": (8, 8)})
    store_operands(model)
    assert "Transpose" in kinds(model), kept


def test_the_bias_that_an_exporter_fills_with_zeros_is_stored() -> None:
    body = """
        shape = Shape<start = 0, end = 1>(w)
        zero = Constant<value = float {0}>()
        typed = CastLike(zero, x)
        bias = Expand(typed, shape)
        c = Conv(x, w, bias)
        y = Flatten(c)"""
    model = model_of(body, {"w": (4, 8, 1, 1)}, "float[n, 8, 2, 2] x")
    feeds = {"x": np.random.default_rng(9).standard_normal((3, 8, 2, 2)).astype(np.float32)}
    before = run(model, feeds)
    store_operands(model)
    assert kinds(model) == ["Conv", "Flatten"]
    bias = model.graph.node(0).inputs[2]
    assert bias is not None
    np.testing.assert_array_equal(bias.const_value.numpy(), np.zeros(4))  # type: ignore[union-attr]
    assert set(model.graph.initializers) == {"w", bias.name}
    np.testing.assert_allclose(run(model, feeds), before, rtol=1e-5, atol=1e-6)


def test_what_the_caller_may_override_is_no_constant() -> None:
    text = f"""{HEAD} g (float[n, 8] x, float[4, 8] w = {{{",".join("1" * 32)}}}) => (float[n, 4] y) {{
        t = Transpose(w) y = MatMul(x, t) }}"""
    model = ir.from_onnx_text(text)
    store_operands(model)
    assert kinds(model) == ["Transpose", "MatMul"]


WIDE = (96, 80, 3, 3)
COMPUTED = {
    "standardised": """
        rows = Constant<value_ints = [96, 720]>() flat = Reshape(w, rows) mean = ReduceMean<axes = [1]>(flat)
        centred = Sub(flat, mean) square = Mul(centred, centred) variance = ReduceMean<axes = [1]>(square)
        deviation = Sqrt(variance) unit = Div(centred, deviation) shape = Shape(w) v = Reshape(unit, shape)""",
    "standardised by a batch norm": """
        rows = Constant<value_ints = [1, 96, 720]>() flat = Reshape(w, rows) shape = Shape(w)
        unit, a, b = BatchNormalization<training_mode = 1>(flat, ones, zeros, zeros, ones) v = Reshape(unit, shape)""",
    "weight norm": "n = ReduceL2<axes = [1, 2, 3]>(w) unit = Div(w, n) v = Mul(unit, gain)",
}


@pytest.mark.parametrize("body", COMPUTED.values(), ids=COMPUTED)
def test_weights_that_modules_compute_of_others_are_stored(body: str) -> None:
    """However large: such a weight is no larger than what it is made of."""
    shapes = {"w": WIDE, "gain": (96, 1, 1, 1), "ones": (96,), "zeros": (96,)}
    read = {name: shape for name, shape in shapes.items() if re.search(rf"\b{name}\b", body)}
    model = model_of(f"{body} c = Conv(x, v) y = Flatten(c)", read, "float[n, 80, 3, 3] x", opset=17)
    feeds = {"x": np.random.default_rng(9).standard_normal((2, *WIDE[1:])).astype(np.float32)}
    before = run(model, feeds)
    assert np.prod(WIDE) > LARGEST
    store_operands(model)
    assert kinds(model) == ["Conv", "Flatten"]
    assert list(model.graph.initializers) == ["v"]
    np.testing.assert_allclose(run(model, feeds), before, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shared", ["w", "u"])
def test_a_matrix_that_others_read_too_is_not_stored_twice(shared: str) -> None:
    body = (
        "n = ReduceL2(w) u = Div(w, n) v = Neg(u) a = MatMul(x, v) "
        f"r = Relu({shared}) b = MatMul(x, r) y = Add(a, b)"
    )
    model = model_of(body, {"w": (8, 8)})
    before = kinds(model)
    store_operands(model)
    assert kinds(model) == before


@pytest.mark.parametrize("size", [LARGEST + 1, 1 << 45])
def test_nothing_large_is_computed(size: int) -> None:
    body = f"""
        shape = Constant<value_ints = [1, {size}]>()
        one = Constant<value = float {{1}}>()
        t = Expand(one, shape)
        y = MatMul(x, t)"""
    model = model_of(body, {}, "float[n, 1] x")
    store_operands(model)
    assert "Expand" in kinds(model)


@pytest.mark.parametrize(
    "body",
    [
        "t = Mul(column, row)",
        "t = MatMul(column, row)",
        "t = Clip(column, row)",
        "flat = Squeeze(row) t, m, v = BatchNormalization<training_mode = 1>(column, flat, flat, flat, flat)",
        "t = LayerNormalization(row, column)",
        "shape = Shape(row) t = Expand(column, shape)",
    ],
)
def test_small_constants_make_nothing_large(body: str) -> None:
    """The refusal comes before the memory is taken: 3.6 GB of it."""
    model = model_of(
        f"{body} y = MatMul(x, t)", {"column": (30000, 1), "row": (1, 30000)}, "float[n, 30000] x"
    )
    before = kinds(model)
    tracemalloc.start()
    store_operands(model)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert kinds(model)[-2:] == before[-2:]
    assert peak < 1 << 25


@pytest.mark.parametrize("length", [20, 2000])
def test_a_long_way_to_many_weights_is_not_walked_for_each(
    length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = " ".join(
        f"b{i + 1} = Neg(b{i}) t{i} = Abs(b{i}) x{i + 1} = Gemm(x{i}, w, t{i})" for i in range(length)
    )
    model = model_of(f"x0 = Relu(x) {steps} y = Relu(x{length})", {"w": (8, 8), "b0": (8,)})
    ran = itertools.count(1)

    def counted(*given: Any) -> Any:
        assert next(ran) <= MOST_NODES**2
        return evaluated(*given)

    monkeypatch.setattr("sparsecc.loading.constant_weights.evaluated", counted)
    store_operands(model)
    assert ("Abs" in kinds(model)) == (length > MOST_NODES)


@pytest.mark.parametrize(
    "body",
    [
        "t = Transpose<perm = [0, 7]>(w)",
        "t = Reshape(w, bad)",
        "t = Slice(w, w, w)",
        "t = MatMul(w, w)",
        "t, m, v = BatchNormalization(, , , , ) idle = Neg(w)",
    ],
)
def test_nodes_that_cannot_run_are_left_to_the_runtime(body: str) -> None:
    model = model_of(f"bad = Constant<value_ints = [3]>() {body} y = MatMul(x, t)", {"w": (4, 8)})
    before = len(kinds(model))
    store_operands(model)
    assert len(kinds(model)) == before


@pytest.mark.parametrize(("name", "tied"), [("bert_masked_lm", 1), ("mobilenet_v2", 0), ("vit", 0)])
def test_an_export_without_the_optimizer_has_as_many_layers(name: str, tied: int) -> None:
    """But for a tied table, which the optimizer stores twice."""
    found: list[tuple[int, list[str]]] = []
    for form in ("plain", "unoptimized"):
        model = normalise(load_ir(onnx_path(name, "dynamo", form)))
        prepare(model)
        sites, remarks = find_layers(model, SINGLE_OR_HALF)
        found.append((len(sites), [s.reason for s in remarks if s.reason != "both operands are activations"]))
    (plain, _), (unoptimized, reasons) = found
    assert (unoptimized, len(reasons)) == (plain - tied, tied)
    assert unoptimized > 10
    assert all("which other nodes read too" in reason for reason in reasons)


LISTED = "float[4, 8] w = {" + ",".join("1" * 32) + "}, float[4] b = {1, 2, 3, 4}"


@pytest.mark.parametrize(
    ("inputs", "body", "left"),
    [
        (LISTED, "y = Gemm<transB = 1>(x, w, b)", ["x"]),
        (LISTED, "z = Constant<value = float[4, 4] {" + ",".join("1" * 16) + "}>() "
                 "a = Gemm<transB = 1>(x, w) c = MatMul(a, z) d = Add(c, b) y = MatMul(d, z)", ["x", "w", "b"]),
        ("float[1] gain = {2}", "y = Mul(x, gain)", ["x", "gain"]),
    ],
    ids=["its weights are listed", "most are not", "no weight of a layer"],
)  # fmt: skip
def test_a_file_that_lists_its_weights_as_inputs_means_constants(
    inputs: str, body: str, left: list[str]
) -> None:
    model = ir.from_onnx_text(f"{HEAD} g (float[n, 8] x, {inputs}) => (float[n, m] y) {{ {body} }}")
    model = normalise(model)
    assert [value.name for value in model.graph.inputs] == left
    assert model.meta[FIXED] == 3 - len(left) if left == ["x"] else model.meta[FIXED] == 0


SLICED = """
n (float[5, 2, 6] x) => (float[5, 1, 2, 4] y)
<int64[1] axis = {0}, int64[1] a = {0}, int64[1] b = {4}, int64[1] c = {12}, int64[1] d = {16}> {
    i = Slice(w, a, b, axis) o = Slice(w, c, d, axis) m = Slice(w, b, c, axis) g = Concat<axis = 0>(i, o, m)
    w1 = Unsqueeze(g, axis) y, h, s = LSTM<hidden_size = 4>(x, w1, r) }
"""


def test_gates_that_a_graph_sorts_are_one_weight() -> None:
    """Exporters without their optimizer slice gates out and join them in ONNX's order: a unit that went left a copy
    of the whole weight for every slice."""
    analysis = analysed(SLICED, {"w": normal(16, 6), "r": normal(1, 16, 4, seed=1)})
    weight = analysis.model.graph.initializers["w1"].const_value
    assert weight is not None
    assert list(weight.shape) == [1, 16, 6]
    units = next(g for g in find_groups(analysis) if len(g.members) == 3)
    params = params_model(analysis)
    assert params.total({}) == 16 * 6 + 16 * 4
    assert params.total({units.atom: 2}) == 8 * 6 + 8 * 2


def test_a_constant_on_the_left_is_not_called_an_activation() -> None:
    """A graph convolution: adjacency times features, after features times weights."""
    ones = [", ".join(["1"] * size) for size in (36, 32)]
    constants = f"<float[6,6] adjacency = {{{ones[0]}}}, float[4,8] w = {{{ones[1]}}}>"
    model = ir.from_onnx_text(
        f"""{HEAD} net (float[b,6,4] x, float[b,8,6] z) => (float[b,6,6] y) {constants} {{
        own = MatMul(x, w)
        mixed = MatMul(adjacency, own)
        y = MatMul(mixed, z)
        }}"""
    )
    layers, remarks = find_layers(model)
    assert len(layers) == 1
    assert [r.reason for r in remarks] == [CONSTANT_FIRST, "both operands are activations"]
