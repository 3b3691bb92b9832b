"""fp16 and bf16 in the bodies of If, Loop and Scan: weights are halves there, their borders float32."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import sparsecc
from sparsecc.ir.subgraphs import bodies_of, one_scope
from sparsecc.passes.quantize import Quantize
from sparsecc.rules.value_types import value_types
from sparsecc.runtime.session import open_session
from tests.quantize_models import weighted
from tests.test_quantize import apply, outputs, relative_error
from tests.test_quantize_bodies import loop

SCAN = """g (float[5,4,64] x, float[4,64] start, WEIGHTS) => (float[4,64] last, float[5,4,64] all) {
    warm = Relu(x)
    last, all = Scan<num_scan_inputs = 1, body = b (float[4,64] s, float[4,64] t) => (float[4,64] s2, float[4,64] o) {
        p = MatMul(t, w)
        q = MatMul(s, v)
        r = Add(p, q)
        s2 = Tanh(r)
        o = Mul(s2, s2)
    }>(start, warm)
}"""
NESTED = """g (float[4,64] x, WEIGHTS) => (float[4,64] y) {
    times = Constant<value = int64 {3}>()
    go = Constant<value = bool {1}>()
    wide = MatMul(x, v)
    y = Loop<body = b (int64 i, bool c, float[4,64] s) => (bool c2, float[4,64] s2) {
        one = Constant<value = int64 {1}>()
        first = Less(i, one)
        d = If<then_branch = t () => (float[4,64] a) { m = MatMul(s, w) a = Add(m, wide) },
               else_branch = e () => (float[4,64] o) { o = Sigmoid(wide) }>(first)
        s2 = Tanh(d)
        c2 = Identity(c)
    }>(times, go, x)
}"""


def _scan() -> ir.Model:
    model = weighted(SCAN, {"w": (64, 64), "v": (64, 64)})
    one_scope(model)
    return model


def _nested() -> ir.Model:
    model = weighted(NESTED, {"w": (64, 64), "v": (64, 64)})
    one_scope(model)
    return model


MODELS = {"if and loop": loop, "scan": _scan, "nested": _nested}


def _feeds(model: ir.Model) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {
        value.name or "": np.array(True)
        if value.dtype == ir.DataType.BOOL
        else rng.standard_normal(value.shape.numpy() if value.shape else ()).astype(np.float32)
        for value in model.graph.inputs
    }


@pytest.mark.parametrize(("type_", "bound"), [("fp16", 1e-6), ("bf16", 1e-4)])
@pytest.mark.parametrize("name", MODELS)
def test_layers_in_bodies_are_halves_between_casts(name: str, type_: str, bound: float) -> None:
    model = MODELS[name]()
    feeds = _feeds(model)
    before = outputs(model, feeds)
    result, _ = apply(Quantize(type=type_), model, "tensorrt-rtx", [feeds])
    assert not result.remarks
    products = [node for node in model.graph.all_nodes() if node.op_type in ("MatMul", "Gemm")]
    half = ir.DataType.FLOAT16 if type_ == "fp16" else ir.DataType.BFLOAT16
    types = value_types(model)
    assert {types[value] for node in products for value in node.inputs if value is not None} == {half}
    for node in model.graph.all_nodes():
        for body in bodies_of(node):
            assert half not in {types.get(value) for value in (*body.inputs, *body.outputs)}
    onnx.checker.check_model(ir.to_proto(model), full_check=type_ == "fp16")
    after = next(iter(open_session(model, rounds=True).run(feeds).values()))
    assert 0 < relative_error(before, after) < bound, "every number in a body is rounded"


def test_an_excluded_node_keeps_its_bodies_and_what_they_read_in_float32() -> None:
    model = _nested()
    feeds = _feeds(model)
    before = outputs(model, feeds)
    result, _ = apply(Quantize(type="fp16", exclude=("type:Loop",)), model, "tensorrt-rtx", [feeds])
    types = value_types(model)
    inner = [node for one in model.graph for body in bodies_of(one) for node in body.all_nodes()]
    assert ir.DataType.FLOAT16 not in {
        types.get(value) for node in inner for value in node.inputs if value is not None
    }
    assert result.facts["nodes"] == [next(node.name for node in model.graph if node.op_type == "MatMul")]
    assert relative_error(before, outputs(model, feeds)) < 1e-6


def test_a_constant_that_fp16_does_not_hold_keeps_its_node_in_a_body_in_float32() -> None:
    model = _nested()
    for node in model.graph.all_nodes():
        if node.op_type == "Sigmoid":
            assert isinstance(node.graph, ir.Graph)
            factor = ir.Value(name="factor", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([]))
            factor.const_value = ir.tensor(np.float32(1e6), name="factor")
            model.graph.register_initializer(factor)
            scaled = ir.node("Div", [node.inputs[0], factor], name="scaled")
            scaled.outputs[0].name = "scaled"
            node.graph.insert_before(node, scaled)
            node.replace_input_with(0, scaled.outputs[0])
    result, _ = apply(Quantize(type="fp16"), model, "tensorrt-rtx", [_feeds(model)])
    assert {remark.where for remark in result.remarks} >= {"scaled"}


@pytest.mark.parametrize("size", [1.0, 40000.0])
def test_a_value_that_grows_too_large_in_a_body_on_the_samples_keeps_its_nodes_in_float32(
    size: float,
) -> None:
    """Of the second iteration on: what the first one sees would tell nothing."""
    model = weighted(
        """g (float[4,16] x, WEIGHTS) => (float[4,16] y, float[3,4,16] z) {
            times = Constant<value = int64 {3}>()
            go = Constant<value = bool {1}>()
            y, z = Loop<body = b (int64 i, bool c, float[4,16] s) => (bool c2, float[4,16] s2, float[4,16] o) {
                n = Cast<to = 1>(i)
                t = Mul(n, s)
                u = Add(t, w)
                s2 = Tanh(u)
                o = Mul(s2, s2)
                c2 = Identity(c)
            }>(times, go, x)
        }""",
        {"w": (16,)},
    )
    one_scope(model)
    grown = model.graph.initializers["w"].const_value
    assert grown is not None
    model.graph.initializers["w"].const_value = ir.tensor(np.full(16, size, np.float32), name="w")
    result, _ = apply(Quantize(type="fp16"), model, "tensorrt-rtx", [_feeds(model)])
    kept = {remark.where.split("_")[0] for remark in result.remarks}
    assert kept == ({"Add", "Tanh"} if size > 30000 else set())


def test_a_compile_halves_the_file_and_is_proved(tmp_path: Path) -> None:
    ir.save(loop(), tmp_path / "model.onnx")
    made = sparsecc.compile(tmp_path / "model.onnx", quantize="fp16", output=tmp_path / "out", measure=False)
    assert "losses" not in made.report["verification"]
    before, after = ((tmp_path / name).stat().st_size for name in ("model.onnx", "out/model.onnx"))
    assert after < 0.6 * before


SUMS = """g (float[8,4] x, float[4] start) => (float[4] last, float[8,4] all) {
    last, all = Scan<num_scan_inputs = 1, body = b (float[4] s, float[4] t) => (float[4] s2, float[4] o) {
        s2 = Add(s, t)
        o = Identity(s2)
    }>(start, x)
}"""


def test_a_body_without_weights_is_explained_by_its_type(tmp_path: Path) -> None:
    """What is rounded are its activations alone."""
    model = ir.serde.serialize_model(weighted(SUMS, {}))
    onnx.save(model, tmp_path / "sums.onnx")
    result = sparsecc.compile(tmp_path / "sums.onnx", quantize="fp16", output=tmp_path / "out", measure=False)
    found = result.report["verification"]
    assert found["status"] == "proved", found.get("reason")
