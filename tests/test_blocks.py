"""Layers that can be left out: which are found, that leaving them out is exact, and which ones go."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from sparsecc import api
from sparsecc.compilation import Compilation
from sparsecc.decide.layers import Greedy, has_layers, shorten
from sparsecc.errors import InputError, InternalError
from sparsecc.graph.analysis import Analysis, analyse
from sparsecc.graph.residual_blocks import ResidualBlock, find_blocks
from sparsecc.ir.save import write
from sparsecc.loading.models import load_ir
from sparsecc.loading.normalise import CLEARED, normalise
from sparsecc.options import CompileOptions
from sparsecc.passes.drop_blocks import drop
from sparsecc.reference.gated_layers import plugged, silenced
from sparsecc.report.result import CompileResult
from sparsecc.runtime.numerics import worst_error
from sparsecc.runtime.session import open_session
from sparsecc.system.scratch import Scratch
from sparsecc.tasks.stages import begin
from tests.rule_checks import model_of
from tests.zoo import ZOO
from tests.zoo.export import ZooUnavailable, onnx_path

LAYERS = 5


def analysed(text: str) -> Analysis:
    return analyse(normalise(ir.from_proto(model_of(text))))


def chain(layers: int = LAYERS, width: int = 16) -> str:
    """Residual layers of a norm and two matrices each, between a first and a last matrix."""
    weights, nodes = [], ["h0 = MatMul(x, w_in)"]
    for i in range(layers):
        weights += [f"float[{width}] wn{i}, float[{width},32] wa{i}, float[32,{width}] wb{i}"]
        nodes += [
            f"n{i} = LayerNormalization(h{i}, wn{i})",
            f"a{i} = MatMul(n{i}, wa{i})",
            f"r{i} = Relu(a{i})",
            f"b{i} = MatMul(r{i}, wb{i})",
            f"h{i + 1} = Add(h{i}, b{i})",
        ]
    nodes += [f"y = MatMul(h{layers}, w_out)"]
    inputs = ", ".join(["float[N,8] x", f"float[8,{width}] w_in", f"float[{width},4] w_out", *weights])
    return f"({inputs}) => (float[N,4] y) {{ {' '.join(nodes)} }}"


RESIDUAL = "(float[N,8] x, float[8,8] w, float[8,8] w2) => (float[N,8] y{more}) {{ {body} }}"
CASES = {
    "a branch": ("h = MatMul(x, w) y = Add(x, h)", ["y"]),
    "the branch comes first": ("h = MatMul(x, w) y = Add(h, x)", ["y"]),
    "one inside the other": ("a = MatMul(x, w) b = Add(x, a) c = MatMul(b, w2) y = Add(c, x)", ["b", "y"]),
    "in series": ("a = MatMul(x, w) b = Add(x, a) c = MatMul(b, w2) y = Add(b, c)", ["b", "y"]),
    "side by side": ("a = MatMul(x, w) b = Add(x, a) c = MatMul(x, w2) y = Add(b, c)", ["b", "y"]),
    "both in one": ("a = MatMul(x, w) c = MatMul(x, w2) b = Add(a, c) y = Add(b, x)", ["y"]),
    "two projections": ("a = MatMul(x, w) c = MatMul(x, w2) y = Add(a, c)", []),
    "nothing computed": ("a = Mul(x, x) b = Relu(a) y = Add(x, b)", []),
    "another reader": ("a = MatMul(x, w) b = Relu(a) c = Add(x, b) y = Mul(c, a)", []),
    "from the entry's values": (
        "g = Sigmoid(x) a = MatMul(x, w) b = Mul(a, g) c = Add(x, b) y = Mul(c, g)",
        [],
    ),
    "from the entry's shape": (
        "s = Shape(x) a = MatMul(x, w) b = Reshape(a, s) c = Add(x, b) d = MatMul(c, w2) e = Reshape(d, s)"
        " y = Relu(e)",
        ["c"],
    ),
}


@pytest.mark.parametrize(
    ("layers", "options", "has"),
    [(2, {}, False), (3, {}, True), (3, {"keep": ["wa1"]}, False), (3, {"only": ["wa0"]}, False)],
)
def test_a_search_leaves_layers_out_where_one_may_go(layers: int, options: dict[str, Any], has: bool) -> None:
    assert has_layers(CompileOptions(**options), analysed(chain(layers))) is has


@pytest.mark.parametrize("name", CASES)
def test_what_is_a_block(name: str) -> None:
    body, exits = CASES[name]
    assert [b.exit for b in find_blocks(analysed(RESIDUAL.format(more="", body=body)))] == exits


def test_an_output_inside_keeps_the_branch() -> None:
    body = "h = MatMul(x, w) y = Add(x, h)"
    assert find_blocks(analysed(RESIDUAL.format(more=", float[N,8] h", body=body))) == []


def test_a_block_knows_what_goes_and_what_it_costs() -> None:
    found = find_blocks(analysed(chain()), first_id=7)
    assert [b.id for b in found] == list(range(7, 7 + LAYERS))
    assert found[2].members == ("wn2", "wa2", "wb2")
    assert found[2].params == 16 + 2 * 16 * 32
    rows = 2  # the batch of the first probe
    assert found[2].macs == rows * 2 * 16 * 32
    assert (found[2].entry, found[2].exit) == ("h2", "h3")
    assert [n.op_type for n in found[2].nodes] == ["LayerNormalization", "MatMul", "Relu", "MatMul", "Add"]
    assert [b.pinned for b in found] == ["the first layer stays", *[None] * 3, "the last layer stays"]
    assert [b.position for b in found] == [0, 0.25, 0.5, 0.75, 1]


def test_repeats_go_whole_and_the_outer_ones_stay(models_dir: Path) -> None:
    analysis = analyse(normalise(load_ir(models_dir / "digits_vit.onnx")))
    found = find_blocks(analysis)
    assert [len(b.branches) for b in found] == [1] * 6 + [2] * 3
    free = [[x.title for x in b.branches] for b in found if b.is_free]
    assert free == [free[2][:1], free[2][1:], free[2]]


def check_every_drop(path: Path, folder: Path) -> int:
    """Leaving a block out must equal the dense model in which its branches add zeros; how many were tried."""
    model = normalise(load_ir(path))
    compilation = Compilation(path, CompileOptions(), Scratch(folder))
    analysis = compilation.begin(model)
    found = find_blocks(analysis)
    for chosen in [[b] for b in found] + ([found] if found else []):
        branches = list(dict.fromkeys(x.title for b in chosen for x in b.branches))
        zeros = open_session(write(silenced(model, branches), folder / "zeros" / "model.onnx"), level="none")
        smaller = model.clone()
        gone = drop(smaller, branches)
        if len(chosen) == 1:
            assert set(gone) == {n.name for n in chosen[0].nodes}
            assert not set(chosen[0].members) & set(smaller.graph.initializers)
        left = open_session(write(smaller, folder / "left" / "model.onnx"), level="none")
        for feeds, dense in zip(compilation.feeds, compilation.expected, strict=True):
            wanted = zeros.run(feeds)
            assert worst_error(wanted, left.run(feeds)) <= 1e-6
            assert worst_error(dense, wanted) > 1e-4
    return len(found)


@pytest.mark.parametrize("name", ["digits_vit", "digits_resnet"])
def test_leaving_out_equals_adding_zeros(name: str, models_dir: Path, tmp_path: Path) -> None:
    assert (
        check_every_drop(models_dir / f"{name}.onnx", tmp_path) == {"digits_vit": 9, "digits_resnet": 2}[name]
    )


@pytest.mark.parametrize("name", ["side by side", "one inside the other", "from the entry's shape"])
def test_leaving_out_equals_adding_zeros_where_branches_meet(name: str, tmp_path: Path) -> None:
    onnx.save(model_of(RESIDUAL.format(more="", body=CASES[name][0])), tmp_path / "m.onnx")
    assert check_every_drop(tmp_path / "m.onnx", tmp_path) == len(CASES[name][1])


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(ZOO)))
def test_leaving_out_equals_adding_zeros_in_the_zoo(name: str, tmp_path: Path) -> None:
    try:
        path = onnx_path(name)
    except ZooUnavailable as e:
        pytest.skip(str(e))
    check_every_drop(path, tmp_path)


def test_a_dropped_graph_output_keeps_its_name(tmp_path: Path) -> None:
    model = normalise(ir.from_proto(model_of(RESIDUAL.format(more="", body=CASES["a branch"][0]))))
    (block,) = find_blocks(analyse(model))
    drop(model, [block.branches[0].title])
    x = np.ones((3, 8), dtype=np.float32)
    found = open_session(write(model, tmp_path / "m.onnx"), level="none").run({"x": x})
    assert np.array_equal(found["y"], x)


def test_a_branch_that_is_not_there_is_refused() -> None:
    model = normalise(ir.from_proto(model_of(chain())))
    with pytest.raises(InputError, match="there is no branch 'nothing:1'"):
        drop(model, ["nothing:1"])


def saved_chain(folder: Path, silent: tuple[int, ...] = (), layers: int = LAYERS) -> Path:
    """The chain as a file; the layers in `silent` add almost nothing."""
    model = model_of(chain(layers))
    for tensor in model.graph.initializer:
        if tensor.name in {f"wb{i}" for i in silent}:
            weak = 1e-6 * onnx.numpy_helper.to_array(tensor)
            tensor.CopyFrom(onnx.numpy_helper.from_array(weak, tensor.name))
    onnx.save(model, folder / "chain.onnx")
    return folder / "chain.onnx"


def opened(path: Path, folder: Path, **options: Any) -> tuple[Compilation, Analysis]:
    asked = CompileOptions.of({"prune": ["layers"], **options})
    compilation = Compilation(path, asked, Scratch(folder))
    return compilation, begin(compilation)


@pytest.mark.parametrize("silent", [1, 2, 3])
def test_the_layer_that_adds_nothing_goes_first(silent: int, tmp_path: Path) -> None:
    compilation, analysis = opened(saved_chain(tmp_path, (silent,)), tmp_path, ratio=0.1)
    _, depth = shorten(compilation, analysis)
    assert depth.dropped == {next(n for n in depth.dropped)}
    assert set(depth.nodes) >= {node.name for node in find_blocks(analysed(chain()))[silent].nodes}
    assert depth.change < 1e-4


def test_equal_layers_go_from_the_back(tmp_path: Path) -> None:
    compilation, analysis = opened(saved_chain(tmp_path, tuple(range(LAYERS))), tmp_path, ratio=0.1)
    free = [b for b in find_blocks(analysis) if b.is_free]
    board = plugged(analysis.model, [b.branches[0].title for b in free], tmp_path / "g" / "m.onnx", 1)
    greedy = Greedy(free, board, compilation.feeds, budget=1.0)
    assert all(greedy.change([b.branches[0].title]) < 1e-4 for b in free)
    greedy.change = lambda branches: 0.5  # type: ignore[method-assign]
    assert [b.id for b in greedy.choose()[0]] == [3]


def compiled(path: Path, folder: Path, **options: Any) -> CompileResult:
    return api.compile(path, output=folder / "out", measure=False, recover="none", **options)


def test_a_compile_leaves_layers_out(tmp_path: Path) -> None:
    path = saved_chain(tmp_path, (1, 3))
    result = compiled(path, tmp_path, ratio=0.3, prune=["layers"])
    report, plan = result.report, result.plan
    dropped = [g for g in plan["groups"] if g["kind"] == "layer" and not g["kept"]]
    assert [g["members"][0][0] for g in dropped] == ["wn1", "wn3"]
    assert len(plan["dropped_nodes"]) == 10
    assert report["removed"]["reached"]
    dense, per_layer = report["before"]["params"], 16 + 2 * 16 * 32
    assert report["after"]["params"] == dense - 2 * per_layer
    assert report["fidelity"]["quality_db"] > 35
    assert [y["macs_after"] for y in report["layers"] if y["name"] in plan["dropped_nodes"]] == [0] * 4
    model = load_ir(tmp_path / "out" / "model.onnx")
    assert sum(node.op_type == "LayerNormalization" for node in model.graph) == LAYERS - 2
    assert not {"wn1", "wn3"} & set(model.graph.initializers)
    checks = api.verify(tmp_path / "out", model=path)["checks"]
    assert {c["check"]: c["ok"] for c in checks}["numerics"]


def test_layers_take_at_most_half_where_channels_go_too(tmp_path: Path) -> None:
    result = compiled(
        saved_chain(tmp_path, (1, 2, 3)), tmp_path, ratio=0.5, prune=["layers", "channels"], align=1
    )
    report = result.report
    gone = sum(y["macs_before"] for y in report["layers"] if y["name"] in result.plan["dropped_nodes"])
    assert 0 < gone <= 0.25 * report["before"]["macs"]
    assert report["removed"]["reached"]
    assert report["removed"]["share"] == pytest.approx(1 - report["after"]["macs"] / report["before"]["macs"])
    assert result.plan["tensors"]


def test_layers_that_were_asked_for_and_stay_say_why(tmp_path: Path) -> None:
    compilation, analysis = opened(saved_chain(tmp_path, layers=2), tmp_path, ratio=0.3, prune=("layers",))
    shorten(compilation, analysis)
    reasons = [(name, remark.reason) for name, remark in compilation.remarks]
    assert reasons == [("drop_blocks", "the first layer stays"), ("drop_blocks", "the last layer stays")]


def test_layers_stay_unless_asked(tmp_path: Path) -> None:
    result = compiled(saved_chain(tmp_path, (1, 2, 3)), tmp_path, ratio=0.5)
    assert result.plan["dropped_nodes"] == []
    assert {g["kind"] for g in result.plan["groups"]} == {"channel"}


def test_a_layer_is_kept_by_id(tmp_path: Path) -> None:
    path = saved_chain(tmp_path, (1,))
    layers = [g for g in api.inspect(path)["groups"] if g["kind"] == "layer"]
    result = compiled(path, tmp_path, ratio=0.1, prune=["layers"], keep=[f"group:{layers[1]['id']}"])
    dropped = [g["members"][0][0] for g in result.plan["groups"] if g["kind"] == "layer" and not g["kept"]]
    assert len(dropped) == 1
    assert dropped != ["wn1"]


def test_a_wrong_drop_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compilation, analysis = opened(saved_chain(tmp_path, (1,)), tmp_path, ratio=0.1)

    other = find_blocks(analysis)[3].branches[0].title
    monkeypatch.setattr("sparsecc.decide.layers.silenced", lambda model, branches: silenced(model, [other]))
    with pytest.raises(InternalError, match="the model without 1 layers differs"):
        shorten(compilation, analysis)


def test_an_outer_block_counts_its_inner_ones_once() -> None:
    analysis = analysed(RESIDUAL.format(more="", body=CASES["one inside the other"][0]))
    inner, outer = find_blocks(analysis)
    greedy: Any = Greedy.__new__(Greedy)
    greedy.nodes = {b.id: set(b.nodes) for b in (inner, outer)}
    greedy.weight = lambda block: block.macs
    assert set(inner.nodes) < set(outer.nodes)
    assert greedy.cost([inner, outer]) == outer.macs == 2 * inner.macs


def test_free_blocks_are_those_that_may_go() -> None:
    found: list[ResidualBlock] = find_blocks(analysed(chain()), prune=["channels"])
    assert {b.pinned for b in found[1:-1]} == {"layer groups were not asked to be pruned"}


def test_experts_of_one_mixture_operator_go(tmp_path: Path) -> None:
    text = """(float[N,8] x, float[8,16] w1, float[8,8] wr, float[8,32,16] w3, float[8,16,32] w4, float[16,4] w5)
    => (float[N,4] y)
    { h = MatMul(x, w1) r = MatMul(x, wr) m = com.microsoft.MoE<k = 2, activation_type = "relu">(h, r, w3, , w4)
      y = MatMul(m, w5) }"""
    onnx.save(model_of(text, 17), tmp_path / "moe.onnx")
    result = compiled(tmp_path / "moe.onnx", tmp_path, ratio=0.4, metric="params", prune=["experts"])
    (experts,) = (g for g in result.plan["groups"] if g["kind"] == "expert")
    assert 2 <= experts["kept"] < 8
    left = {
        v.name: v.const_value for v in load_ir(tmp_path / "out" / "model.onnx").graph.initializers.values()
    }
    sizes = {t.shape.numpy() for t in left.values() if t is not None and len(t.shape) == 3}
    assert sizes == {(experts["kept"], 32, 16), (experts["kept"], 16, 32)}
    assert result.report["verification"]["oracle"] == "masked dense model"


def test_the_input_of_a_mixture_outlives_it(tmp_path: Path) -> None:
    """ONNX Runtime clears it where nobody reads it later, and all outputs are zero."""
    text = """(float[N,8] x, float[8,16] w1, float[8,8] wr, float[8,32,16] w3, float[8,16,32] w4, float[16,4] w5)
    => (float[N,4] y)
    { h = MatMul(x, w1) r = MatMul(x, wr) m = com.microsoft.MoE<k = 2, activation_type = "relu">(h, r, w3, , w4)
      y = MatMul(m, w5) }"""
    model = ir.from_proto(model_of(text, 17))
    guarded = normalise(model)
    assert len(guarded.meta[CLEARED]) == 1
    ir.save(guarded, tmp_path / "moe.onnx")
    feeds = {"x": np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)}
    for level in ("none", "all"):
        found = open_session(tmp_path / "moe.onnx", level=level).run(feeds)["y"]
        assert np.abs(found).min() > 0
    assert normalise(load_ir(tmp_path / "moe.onnx")).meta[CLEARED] == []
