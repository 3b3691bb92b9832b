"""Models with bodies, pruned by half and compiled: equal to the masked dense model whatever is nested in what."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

import sparsecc
from sparsecc.ir.subgraphs import one_scope
from sparsecc.tasks.compile import compile_model
from tests.control_models import ModelWithBodies
from tests.pruning import Pruned, prune_half
from tests.rule_checks import model_of, run

SEEDS = range(10)


def pruned(proto: onnx.ModelProto, scratch: Path, seed: int = 0) -> Pruned:
    """Half of every free group is gone; the result equals the masked dense model at both batch sizes."""
    path = scratch / "model.onnx"
    onnx.save(proto, path)
    result = prune_half(path, scratch / "scratch", seed)
    assert result.is_exact, result
    assert result.planned_error is None or result.planned_error <= 1e-4
    assert result.left == result.predicted
    assert result.free
    assert result.changed > 1e-3
    assert not result.unfollowed
    return result


@pytest.mark.parametrize("seed", SEEDS)
def test_bodies_within_bodies(seed: int, tmp_path: Path) -> None:
    """Drawn at random; in every second one inner names repeat or shadow outer ones."""
    result = pruned(ModelWithBodies(seed, same_names=seed % 2 == 1).model(), tmp_path, seed)
    assert result.coverage == 1
    assert set(result.pins) == {"graph input 'x'", "graph output 'y'"}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10, 100))
def test_bodies_deep_within_bodies(seed: int, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(ModelWithBodies(seed, same_names=seed % 2 == 1).model(steps=6, depth=3), path)
    result = prune_half(path, tmp_path / "scratch", seed)
    assert result.is_exact, result
    assert result.coverage == 1


@pytest.mark.parametrize("seed", [1, 3])
def test_one_scope_computes_the_same(seed: int) -> None:
    proto = ModelWithBodies(seed, same_names=True).model()
    untouched = ir.serde.deserialize_model(copy.deepcopy(proto))
    model = ir.serde.deserialize_model(proto)
    one_scope(model)
    names = [v.name for graph in model.graphs() for v in (*graph.inputs, *graph.initializers.values())]
    names += [v.name for node in model.graph.all_nodes() for v in node.outputs]
    assert len(names) == len(set(names))
    rng = np.random.default_rng(seed)
    for number, going in ((1, True), (3, False)):
        feeds = {
            "x": rng.normal(size=(2, 6)).astype(np.float32), "c": np.asarray(going), "n": np.asarray(number),
        }  # fmt: skip
        np.testing.assert_array_equal(run(model, feeds)[0], run(untouched, feeds)[0])


def tensor(name: str, kind: int, shape: list[int | str] | None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def weights(rng: np.random.Generator, **shapes: tuple[int, ...]) -> list[onnx.TensorProto]:
    return [
        numpy_helper.from_array(rng.normal(0, 0.4, shape).astype(np.float32), name)
        for name, shape in shapes.items()
    ]


def made(
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    constants: list[onnx.TensorProto],
) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, "case", inputs, outputs, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def branches_of_convolutions(rng: np.random.Generator) -> onnx.ModelProto:
    """Both branches convolve the outer channels, one through a batch norm; each has weights of its own."""
    shape: list[int | str] = ["N", 16, "H", "W"]
    then = helper.make_graph(
        [
            helper.make_node("Conv", ["h", "wt"], ["a"], pads=[1, 1, 1, 1]),
            helper.make_node("BatchNormalization", ["a", "scale", "bias", "mean", "variance"], ["p"]),
        ],
        "then", [], [tensor("p", TensorProto.FLOAT, shape)],
        [*weights(rng, wt=(16, 12, 3, 3), bias=(16,), mean=(16,)), positive(rng, "variance", 16)],
    )  # fmt: skip
    other = helper.make_graph(
        [helper.make_node("Conv", ["h", "we", "be"], ["q"])],
        "else", [], [tensor("q", TensorProto.FLOAT, shape)], weights(rng, we=(16, 12, 1, 1), be=(16,)),
    )  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["f"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["f"], ["h"]),
        helper.make_node("If", ["c"], ["g"], then_branch=then, else_branch=other),
        helper.make_node("GlobalAveragePool", ["g"], ["m"]),
        helper.make_node("Flatten", ["m"], ["v"]),
        helper.make_node("MatMul", ["v", "w2"], ["y"]),
    ]
    inputs = [tensor("x", TensorProto.FLOAT, ["N", 3, "H", "W"]), tensor("c", TensorProto.BOOL, [])]
    constants = [*weights(rng, w1=(12, 3, 3, 3), w2=(16, 5)), positive(rng, "scale", 16)]
    return made(nodes, inputs, [tensor("y", TensorProto.FLOAT, ["N", 5])], constants)


def positive(rng: np.random.Generator, name: str, size: int) -> onnx.TensorProto:
    return numpy_helper.from_array(rng.uniform(0.5, 1.5, size).astype(np.float32), name)


def scanned_lstm(rng: np.random.Generator) -> onnx.ModelProto:
    """An LSTM cell written out: gates by one Gemm and a Split, weights around the body and in it."""
    body = helper.make_graph(
        [
            helper.make_node("Concat", ["xt", "h"], ["xh"], axis=1),
            helper.make_node("Gemm", ["xh", "wg", "bg"], ["gates"]),
            helper.make_node("Split", ["gates", "quarters"], ["i", "o", "f", "g"], axis=1),
            *(helper.make_node("Sigmoid", [a], [a + "s"]) for a in "iof"),
            helper.make_node("Tanh", ["g"], ["gt"]),
            helper.make_node("Mul", ["fs", "s"], ["kept"]),
            helper.make_node("Mul", ["is", "gt"], ["new"]),
            helper.make_node("Add", ["kept", "new"], ["cell"]),
            helper.make_node("Tanh", ["cell"], ["ct"]),
            helper.make_node("Mul", ["os", "ct"], ["hidden"]),
            helper.make_node("Identity", ["hidden"], ["every"]),
        ],
        "cell",
        [tensor(n, TensorProto.FLOAT, ["N", w]) for n, w in (("h", 8), ("s", 8), ("xt", 6))],
        [tensor(n, TensorProto.FLOAT, ["N", 8]) for n in ("hidden", "cell", "every")],
        weights(rng, bg=(32,)),
    )
    sizes = numpy_helper.from_array(np.asarray([8, 8, 8, 8]), "quarters")
    nodes = [
        helper.make_node("MatMul", ["x", "w0"], ["xs"]),
        helper.make_node("MatMul", ["z", "wh"], ["h0"]),
        helper.make_node("MatMul", ["z", "wc"], ["c0"]),
        helper.make_node("Scan", ["h0", "c0", "xs"], ["hn", "cn", "hs"], num_scan_inputs=1, body=body),
        helper.make_node("Add", ["hn", "cn"], ["last"]),
        helper.make_node("MatMul", ["last", "w2"], ["y"]),
        helper.make_node("MatMul", ["hs", "w3"], ["all"]),
    ]
    inputs = [tensor("x", TensorProto.FLOAT, ["T", "N", 4]), tensor("z", TensorProto.FLOAT, ["N", 5])]
    outputs = [tensor("y", TensorProto.FLOAT, ["N", 3]), tensor("all", TensorProto.FLOAT, ["T", "N", 2])]
    shapes = {"w0": (4, 6), "wg": (14, 32), "wh": (5, 8), "wc": (5, 8), "w2": (8, 3), "w3": (8, 2)}
    return made(nodes, inputs, outputs, [*weights(rng, **shapes), sizes])


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_branches_of_convolutions(seed: int, tmp_path: Path) -> None:
    result = pruned(branches_of_convolutions(np.random.default_rng(seed)), tmp_path, seed)
    assert result.free == 2  # what both branches read, and what both give


def test_a_written_out_lstm_cell(tmp_path: Path) -> None:
    result = pruned(scanned_lstm(np.random.default_rng(0)), tmp_path)
    assert result.free == 2  # what is scanned, and the hidden units through gates, state and outputs
    assert result.coverage == 1


def test_a_whole_compile_halves_types_around_bodies(tmp_path: Path) -> None:
    """Bodies stay in float32 and are proven; half precision stops where they begin."""
    onnx.save(ModelWithBodies(4).model(), tmp_path / "model.onnx")
    options = {"ratio": 0.4, "quantize": "fp16", "measure": False, "target": "onnxruntime"}
    request = {"model": tmp_path / "model.onnx", "output": tmp_path / "out", "options": options}
    report = compile_model(request, lambda event: None)["report"]
    assert report["removed"]["share"] > 0.3
    types = {n.op_type for n in ir.load(tmp_path / "out" / "model.onnx").graph.all_nodes()}
    assert types & {"If", "Loop", "Scan"}


@pytest.mark.parametrize(("activation", "stays_zero"), [("Tanh", True), ("Sigmoid", False)])
def test_a_state_is_zero_where_it_starts_so_and_stays_so(
    activation: str, stays_zero: bool, tmp_path: Path
) -> None:
    """The square of a state is summed: zeroing weights in the input model is exact only if the state stays zero."""
    text = (
        "(float[N, 6] x, float[6, 8] w1, float[8, 3] w2) => (float[N, 3] y) <int64 n = {3}, bool c = {1}, "
        "int64[1] last = {-1}> { h0 = MatMul(x, w1) h, qs = Loop(n, c, h0) <body = body (int64 i, bool ci, "
        "float[N, 8] hi) => (bool co, float[N, 8] ho, float[N, 1] q) { co = Identity(ci) a = Mul(hi, hi) "
        f"q = ReduceSum(a, last) ho = {activation}(hi) }}> t = ReduceMean<keepdims = 0>(qs, first) "
        "g = MatMul(h, w2) y = Add(g, t) }"
    )
    text = text.replace("int64[1] last = {-1}", "int64[1] last = {-1}, int64[1] first = {0}")
    result = pruned(model_of(text, opset=20), tmp_path)
    assert (result.planned_error is not None) == stays_zero


def test_a_plan_names_the_use_of_a_constant_inside_a_body(tmp_path: Path) -> None:
    """One bias serves two groups, in a body and outside: each use is listed by its node."""
    text = (
        "(bool c, float[N, 6] x, float[6, 8] w1, float[8, 8] w2, float[8] w3, float[8, 3] w4) => (float[N, 3] y) { "
        "h = MatMul(x, w1) g = If(c) <then_branch = t () => (float[N, 8] p) { a = Add(h, w3) p = Relu(a) }, "
        "else_branch = e () => (float[N, 8] q) { q = Tanh(h) }> k = MatMul(g, w2) l = Add(k, w3) y = MatMul(l, w4) }"
    )
    result = pruned(model_of(text, opset=20), tmp_path)
    assert result.free == 2
    assert result.planned_error is not None
    source, bundle = tmp_path / "model.onnx", tmp_path / "out"
    sparsecc.compile(source, ratio=0.4, target="onnx", align=1, measure=False, output=bundle)
    tensors = json.loads((bundle / "plan.json").read_text())["tensors"]
    assert len(tensors["w3"]["uses"]) == 2
    assert all(check["ok"] for check in sparsecc.verify(bundle, model=source)["checks"])
