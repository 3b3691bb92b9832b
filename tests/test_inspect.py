"""What `sparsecc inspect` tells: groups, nodes, layers, what is at stake, and why; and that it is true."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from sparsecc import api
from sparsecc.cli.inspect_ import inspect_view
from sparsecc.cli.render import draw
from sparsecc.cost.model import macs_model
from sparsecc.cost.summary import costs, counted_at
from sparsecc.errors import InputError
from sparsecc.graph.analysis import Analysis, analyse
from sparsecc.graph.explain import explain
from sparsecc.graph.groups import find_groups
from sparsecc.loading.models import load_ir
from sparsecc.loading.normalise import normalise
from tests import repair_models
from tests.repair_models import normal
from tests.rule_checks import model_of
from tests.test_loading import saved

NET = """(float[N,8] x, float[8,16] wa, float[16] wn, float[16] wo, float[16,16] wb, float[16,5] wc)
=> (float[N,5] y)
{ h = MatMul(x, wa) n = LayerNormalization(h, wn, wo) r = Relu(n) b = MatMul(r, wb) s = Add(h, b)
  y = MatMul(s, wc) }"""
PINS = {
    "graph output": (NET, "wc:1", "graph output 'y'"),
    "graph input": (NET, "wa:0", "graph input 'x'"),
    "softmax": (
        "(float[N,8] x, float[8,6] wa, float[6,3] wb) => (float[N,3] y)"
        "{ h = MatMul(x, wa) {middle} y = MatMul(p, wb) }",
        "wa:1",
        "Softmax 'Softmax_1'",
    ),
}


def analysed(text: str, *, prune_io: Sequence[str] = ()) -> Analysis:
    return analyse(normalise(ir.from_proto(model_of(text))), prune_io=prune_io)


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("inspect") / "net.onnx"
    onnx.save(model_of(NET), path)
    return path


def test_a_group_lists_every_node_that_its_slots_pass(net: Path) -> None:
    groups = api.inspect(net)["groups"]
    stream = next(g for g in groups if ["wa", 1] in g["members"])
    names = [re.sub(r"_\d+$", "", name) for name in stream["nodes"]]
    assert names == ["MatMul", "LayerNormalization", "Relu", "MatMul", "Add", "MatMul"]
    output = next(g for g in groups if ["wc", 1] in g["members"])
    assert [re.sub(r"_\d+$", "", name) for name in output["nodes"]] == ["MatMul"]


def test_layers_are_groups_too(models_dir: Path) -> None:
    groups = api.inspect(models_dir / "digits_vit.onnx")["groups"]
    assert [g["id"] for g in groups] == list(range(len(groups)))
    layers = [g for g in groups if g["kind"] == "layer"]
    assert len(layers) == 9
    middle = next(g for g in layers if g["prunable"] and len(g["nodes"]) > 30)
    assert {m[0] for m in middle["members"]} >= {"layers.1.norm1.weight", "layers.1.mlp.0.bias"}
    assert {m[0].split(".")[1] for m in middle["members"] if m[0].startswith("layers")} == {"1"}
    assert (middle["entry"], middle["exit"]) == (layers[1]["exit"], layers[3]["exit"])


def test_layers_that_stay_whole_are_told_with_their_reasons(models_dir: Path) -> None:
    text = draw(inspect_view(api.inspect(models_dir / "digits_vit.onnx")), width=120, colour=False)
    rows = [" ".join(line.split()) for line in text.splitlines()]
    start = rows.index("layers that stay whole because")
    assert {"3 the first layer stays", "3 the last layer stays"} <= set(rows[start:])
    kept = api.inspect(models_dir / "digits_vit.onnx", keep=["layers.1"])
    assert "layers.1" in draw(inspect_view(kept), width=120, colour=False).split("layers that stay whole")[1]


def test_macs_at_stake_are_those_of_the_nodes_that_change(net: Path) -> None:
    found = api.inspect(net)
    stream = next(g for g in found["groups"] if ["wa", 1] in g["members"])
    rows = found["model"]["macs"] / (8 * 16 + 16 * 16 + 16 * 5)
    assert rows in (1, 2, 3)
    assert stream["macs"] == found["model"]["macs"]
    left = rows * (8 + 1 + 5)  # one slot of the stream stays
    assert found["prunable"]["macs_share"] == pytest.approx(1 - left / found["model"]["macs"])
    assert stream["params"] == 8 * 16 + 2 * 16 + 16 * 16 + 16 * 5


@pytest.mark.parametrize("pin", PINS)
def test_why_ends_at_the_pin(pin: str) -> None:
    text, where, reason = PINS[pin]
    found = explain(analysed(text.replace("{middle}", "p = Softmax(h)")), where)
    assert reason in found["pinned"]
    assert reason in found["steps"][-1]
    assert all(re.search(r"'\w+'", step) for step in found["steps"])


def test_the_printed_cause_is_the_cause() -> None:
    """Take away what the chain ends with, and the axis is free."""
    text, where, _ = PINS["softmax"]
    assert explain(analysed(text.replace("{middle}", "p = Relu(h)")), where)["pinned"] is None
    for pin in ("graph output", "graph input"):
        text, where, _ = PINS[pin]
        assert explain(analysed(text, prune_io=("*",)), where)["pinned"] is None


def test_why_lists_what_the_axis_goes_with(net: Path) -> None:
    why = api.inspect(net, why="wa:1")["why"]
    assert why["pinned"] is None
    assert why["coupled"] == ["wb:0", "wb:1", "wc:0", "wn:0", "wo:0"]
    named = " ".join(why["steps"])
    assert all(tensor in named for tensor in ("wb:0", "wb:1", "wc:0", "wn:0", "wo:0"))
    assert "Add 'Add_4'" in named


@pytest.mark.parametrize("name", ["digits_vit", "digits_resnet", "digits_lstm"])
def test_every_answer_agrees_with_the_groups(name: str, models_dir: Path) -> None:
    """Pinned means that all its atoms are; every chain is connected, and names what is there."""
    analysis = analyse(normalise(load_ir(models_dir / f"{name}.onnx")))
    graph = analysis.model.graph
    there = {v.name for v in (*graph.inputs, *graph.initializers.values())} | {n.name for n in graph}
    there |= {v.name for n in graph for v in n.outputs}
    free: dict[str, bool] = {}
    coupled: dict[str, set[str]] = {}
    for group in find_groups(analysis):
        names = {f"{tensor}:{axis}" for tensor, axis in group.members}
        for member in names:
            free[member] = free.get(member, False) or group.is_free
            if group.is_free:
                coupled.setdefault(member, set()).update(names - {member})
    for where, can_go in free.items():
        found = explain(analysis, where)
        assert (found["pinned"] is None) == can_go, where
        assert set(found["coupled"]) == coupled.get(where, set())
        for step in found["steps"]:
            assert set(re.findall(r"'([^']+)'", step)) <= there
        if found["pinned"]:
            assert found["steps"][-1].endswith(found["pinned"])
            assert_connected(where, found["steps"][:-1])


def assert_connected(where: str, steps: list[str]) -> None:
    """Each statement names something that the one before it named, the first one the axis itself."""
    known = {where}
    for step in steps:
        named = set(re.findall(r"[\w./]+:\d+", step))
        assert named & known, (where, steps)
        known |= named


def test_why_knows_the_parts_of_an_axis() -> None:
    """Of 3 x 16 slots cut at a constant place the three cannot go, the sixteen can."""
    text = """(float[N,8] x, float[8,48] wa, float[16,4] wb) => (float[N,4] y)
    { h = MatMul(x, wa) a, b, c = Split<axis = 1, num_outputs = 3>(h) m = Mul(a, b) k = Add(m, c)
      y = MatMul(k, wb) }"""
    found = explain(analysed(text), "wa:1")
    assert found["pinned"] is None
    assert "wb:0" in found["coupled"]


def test_an_axis_that_is_not_there_is_refused(net: Path) -> None:
    for where, remedy in (
        ("wa:7", "write wa:0"),
        ("wa", "write wa:0"),
        ("waa:0", "the nearest names are 'wa'"),
    ):
        with pytest.raises(InputError, match=f"--why {where}: no such tensor and axis: .*{remedy}"):
            api.inspect(net, why=where)


@pytest.mark.parametrize(
    ("options", "free"),
    [
        ({"keep": ["wb:0"]}, 0),
        ({"keep": ["group:{id}"]}, 0),
        ({"only": ["group:{id}"]}, 1),
        ({"keep": ["channel@wa:1"]}, 0),
        ({"keep": ["group:0"]}, 1),
    ],
)
def test_keep_and_only_by_id(options: dict[str, list[str]], free: int, net: Path) -> None:
    stream = next(g["id"] for g in api.inspect(net)["groups"] if ["wa", 1] in g["members"])
    given = {k: [p.replace("{id}", str(stream)) for p in v] for k, v in options.items()}
    groups = api.inspect(net, keep=given.get("keep", ()), only=given.get("only", ()))["groups"]
    assert sum(g["prunable"] for g in groups if g["kind"] == "channel") == free


def test_an_id_that_no_group_has_is_refused(net: Path) -> None:
    with pytest.raises(InputError, match="there is no group:99: groups are 0 to"):
        api.inspect(net, keep=["group:99"])


def test_the_share_that_can_go_is_that_of_the_cost_model(models_dir: Path) -> None:
    path = models_dir / "digits_vit.onnx"
    analysis = analyse(normalise(load_ir(path)))
    cost = macs_model(analysis)
    least = cost.total({g.atom: 1 for g in find_groups(analysis) if g.is_free})
    assert api.inspect(path)["prunable"]["macs_share"] == pytest.approx(1 - least / cost.total({}))


def test_figures_name_the_sizes_that_they_hold_for(net: Path, models_dir: Path) -> None:
    """MACs are those of one sample whatever the batch, and inspect, compile and a fixed size agree."""
    model = models_dir / "digits_resnet.onnx"
    found = api.inspect(model)
    assert found["counted"]["inputs"] == {"image": [1, 1, 16, 16]}
    assert found["counted"]["batch"] > 1
    assert found["counted"]["unknown"] == []
    for batch in (1, 5):
        given = api.inspect(model, inputs={"image": (batch, 1, 16, 16)})
        assert given["model"]["macs"] == found["model"]["macs"]
    planned = api.compile(model, ratio=0.3, dry_run=True)
    assert planned.report["before"]["macs"] == planned.plan["model"]["macs"] == found["model"]["macs"]
    assert planned.report["counted"] == found["counted"]
    assert sum(layer["macs_before"] for layer in planned.report["layers"]) == found["model"]["macs"]
    assert api.inspect(net)["model"]["macs"] == 8 * 16 + 16 * 16 + 16 * 5


def test_layers_of_unknown_size_are_left_out_of_the_sum_and_named() -> None:
    """A convolution over as many places as the data says."""
    text = """g (float[1, 4, 12] x) => (float[1, 4, k] y) {
        h = MatMul(w0, x) z = NonZero(h) places = Slice(z, two, three, zero)
        row = Squeeze(places, zero) some = Gather<axis=2>(h, row) y = Conv(some, w) }"""
    weights = {
        "w0": normal(4, 4),
        "w": normal(4, 4, 1),
        "zero": np.array([0]),
        "two": np.array([2]),
        "three": np.array([3]),
    }
    analysis = repair_models.analysed(text, weights)
    (conv,) = (node for node in analysis.model.graph if node.op_type == "Conv")
    conv.name = "conv"
    assert counted_at(analysis)["unknown"] == ["conv"]
    assert costs(analysis, {})["before"]["macs"] == 4 * 4 * 12


def test_groups_are_told_by_module_and_cells_of_kernels_are_none(models_dir: Path) -> None:
    found = api.inspect(models_dir / "digits_resnet.onnx")
    assert not [g for g in found["groups"] if "kernel" in (g["pinned"] or "")]
    assert all(axis < 2 for g in found["groups"] for _, axis in g["members"] if g["kind"] == "channel")
    assert ["block1.conv1", "block1.conv2"] in [
        g["modules"] for g in found["groups"] if g["kind"] == "channel"
    ]
    text = draw(inspect_view(found), width=120, colour=False)
    assert "block1 (2 layers)" in text
    assert [g["id"] for g in found["groups"]] == list(range(len(found["groups"])))


def shares_of(path: Path) -> dict[str, Any]:
    found = api.inspect(path)
    require_whole(found)
    return found


def require_whole(found: dict[str, Any]) -> None:
    """Shares of parameters that can go, stay for a reason or have no channels are all of them."""
    shares = [found["prunable"]["params_share"], found["prunable"]["no_channels_share"]]
    assert sum(shares) + sum(pin["share"] for pin in found["pins"]) == pytest.approx(1)
    assert all(pin["share"] >= 0 for pin in found["pins"])
    names = " ".join(group["pinned"] or "" for group in found["groups"])
    assert "spatial" not in names
    assert "kernel" not in names


def test_a_table_of_places_is_no_pinned_group(tmp_path: Path) -> None:
    """What a Flatten makes of places belongs to the channels in front of them."""
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[2,3,12,20] x) => (float[2,5] y) {
        a = Conv<pads=[1,1,1,1]>(x, w1) b = Relu(a) c = Mul(b, mask) f = Flatten(c) y = Gemm(f, w2) }"""
    weights = {"w1": normal(8, 3, 3, 3), "mask": normal(12, 20), "w2": normal(8 * 240, 5)}
    found = shares_of(saved(tmp_path / "m.onnx", text, **weights))
    assert {(g["members"][0][0], g["prunable"]) for g in found["groups"] if g["kind"] == "channel"} == {
        ("w1", True), ("w1", False), ("w2", False)
    }  # fmt: skip
    assert found["prunable"]["no_channels_share"] == pytest.approx(240 / (8 * 27 + 240 + 8 * 240 * 5))
