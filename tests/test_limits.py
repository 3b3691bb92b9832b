"""What the user says of single groups: shares, bounds, slots that stay, masks, the plan of another compile."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import sparsecc
from sparsecc.api import verify
from sparsecc.errors import InputError
from tests.repair_models import normal
from tests.test_loading import saved

NET = """<ir_version: 8, opset_import: ["" : 17]>
g (float[n,6] x) => (float[n,3] y) {
    a = MatMul(x, w1) ra = Relu(a) b = MatMul(ra, w2) rb = Relu(b) c = MatMul(rb, w3) s = Add(c, ra)
    rs = Relu(s) y = MatMul(rs, w4) }"""
HEADS = """<ir_version: 8, opset_import: ["" : 17]>
g (float[2,6] x) => (float[2,3] y) <int64[3] split = {2,4,8}, int64[2] join = {2,32}> {
    q = MatMul(x, w1) a = Reshape(q, split) b = Softmax(a) c = Reshape(b, join) y = MatMul(c, w2) }"""


@pytest.fixture
def net(tmp_path: Path) -> Path:
    """6 -> 32 (stream of the residual) -> 48 -> 32 -> 3."""
    return _net(tmp_path / "m.onnx", 0)


def _net(path: Path, seed: int) -> Path:
    shapes = [(6, 32), (32, 48), (48, 32), (32, 3)]
    weights = {f"w{i + 1}": normal(*s, seed=seed + i) for i, s in enumerate(shapes)}
    return saved(path, NET, **weights)


def made(model: Path, output: Path, **options: Any) -> dict[str, dict[str, Any]]:
    """The entries of the plan's tensors of a compile, which is proved."""
    result = sparsecc.compile(model, output=output, measure=False, **{"align": 1, **options})
    assert result.report["verification"]["status"] == "proved"
    return dict(result.plan["tensors"])


def planned(model: Path, **options: Any) -> dict[str, dict[str, Any]]:
    """The same entries of what would be done."""
    return dict(sparsecc.compile(model, dry_run=True, **{"align": 1, **options}).plan["tensors"])


def savez(path: Path, arrays: dict[str, np.ndarray]) -> None:
    np.savez(path, **arrays)  # type: ignore[arg-type]


def kept(tensors: dict[str, dict[str, Any]], where: str) -> list[int] | None:
    tensor, _, axis = where.partition(":")
    fact = tensors.get(tensor, {}).get(axis)
    return None if fact is None else list(fact["keep"])


def test_a_share_for_a_pattern_goes_and_nothing_else(net: Path, tmp_path: Path) -> None:
    tensors = made(net, tmp_path / "out", ratio_for={"w2*": 0.5, "w2:1": 0.75})
    assert len(kept(tensors, "w2:1") or []) == 12  # the longest pattern counts
    assert len(kept(tensors, "w1:1") or []) == 16


def test_the_others_make_up_the_ratio(net: Path, tmp_path: Path) -> None:
    result = sparsecc.compile(
        net, output=tmp_path / "out", measure=False, align=1, ratio=0.5, ratio_for={"w2:1": 0.25}
    )
    tensors = result.plan["tensors"]
    assert len(kept(tensors, "w2:1") or []) == 36
    assert result.report["removed"]["share"] == pytest.approx(0.5, abs=0.03)
    assert len(kept(tensors, "w1:1") or []) < 32


def test_a_ratio_counts_the_whole_model_with_only_too(net: Path) -> None:
    """A quarter of the channels is a quarter of the mean of both groups: half of the one that may go."""
    tensors = planned(net, ratio=0.25, metric="channels", only=["w2:1"])
    assert len(kept(tensors, "w2:1") or []) == 24
    assert set(tensors) == {"w2", "w3"}


def test_more_than_was_asked_is_said(net: Path) -> None:
    made = sparsecc.compile(net, dry_run=True, align=1, ratio=0.1, ratio_for={"w2:1": 0.75})
    assert made.report["removed"]["share"] > 0.4
    (told,) = [line for line in made.report["warnings"] if line.startswith("ratio 0.1 became 0.")]
    assert told.endswith("--ratio-for alone takes more")


def test_counts_are_those_of_the_kernels_unless_told(net: Path) -> None:
    tensors = planned(net, ratio_for={"w2:1": 0.6}, align=8)
    assert len(kept(tensors, "w2:1") or []) == 16  # 19.2 wanted
    assert kept(tensors, "w1:1") is None


def test_bounds_and_protected_slots(net: Path) -> None:
    assert len(kept(planned(net, ratio=0.6), "w2:1") or []) < 40
    bound = planned(net, ratio=0.6, at_least={"w2:1": 40}, protect={"w1:1": (0, 1, 31)})
    assert len(kept(bound, "w2:1") or range(48)) >= 40
    assert {0, 1, 31} <= set(kept(bound, "w1:1") or [])
    most = planned(net, at_most={"w2:1": 0.25, "w1:1": 20}, protect={"w2:1": (47,)})
    assert [len(kept(most, w) or []) for w in ("w2:1", "w1:1")] == [12, 20]
    assert 47 in (kept(most, "w2:1") or [])


@pytest.mark.parametrize("form", ["json", "numbers", "axis mask", "weight mask"])
def test_a_file_of_slots_decides(net: Path, tmp_path: Path, form: str) -> None:
    stay = [0, 3, 4, 10, 30]
    mask = np.zeros(48, dtype=bool)
    mask[stay] = True
    path = tmp_path / ("slots.json" if form == "json" else "slots.npz")
    if form == "json":
        path.write_text(json.dumps({"w2": stay}))
    elif form == "numbers":
        savez(path, {"w2:1": np.array(stay)})
    elif form == "axis mask":
        savez(path, {"w3:0": mask})
    else:
        savez(path, {"w2": np.ones((32, 48), np.float32) * mask})
    tensors = planned(net, slots=path)
    assert (kept(tensors, "w2:1"), kept(tensors, "w3:0"), kept(tensors, "w1:1")) == (stay, stay, None)


def test_a_ratio_is_met_beside_a_file_of_slots(net: Path, tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text('{"w2": [0, 3, 4, 10, 30]}')
    more = made(net, tmp_path / "more", slots=tmp_path / "s.json", ratio=0.9)
    assert kept(more, "w2:1") == [0, 3, 4, 10, 30]
    assert len(kept(more, "w1:1") or []) < 32


def test_a_module_names_its_layer(net: Path, tmp_path: Path) -> None:
    model = onnx.load(net)
    next(n for n in model.graph.node if n.input[1:] == ["w2"]).name = "/mlp/fc2/MatMul"
    onnx.save(model, net)
    (tmp_path / "s.json").write_text('{"mlp.fc2": [1, 2]}')
    assert kept(planned(net, slots=tmp_path / "s.json"), "w3:0") == [1, 2]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"nothing": [1]}', "'nothing', which is no weight and no module"),
        ('{"w2": [99]}', "'w2' has 48 slots, no slot 99"),
        ('{"w2:1": []}', "nothing is left"),
        ('{"w1:1": [0], "w4:0": [1]}', "are tied, and different slots"),
        ('{"w1:0": [1]}', "which cannot: "),
        ('{"w2": "all"}', "holds neither"),
        ('{"w2": [true]}', "has shape"),
        ("{", "is not JSON"),
        ("{}", "names nothing"),
    ],
)
def test_what_cannot_be_is_refused(net: Path, tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "s.json").write_text(text)
    with pytest.raises(InputError, match=told):
        planned(net, slots=tmp_path / "s.json")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"ratio_for": {"w9": 0.5}}, "--ratio-for 'w9' matches nothing: the nearest"),
        ({"at_most": {"w1:0": 2}}, "--at-most 'w1:0' names nothing that can be cut"),
        ({"at_least": {"w2:1": 20}, "at_most": {"w2:1": 10}}, "at least 20 and at most 10"),
        ({"protect": {"w2:1": (48,)}}, "there is no slot 48"),
        ({"dead_only": True, "ratio_for": {"w2:1": 0.5}}, "leave out --ratio-for"),
    ],
)
def test_bounds_that_cannot_be_are_refused(net: Path, options: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        planned(net, **options)


def test_heads_go_whole(tmp_path: Path) -> None:
    path = saved(tmp_path / "h.onnx", HEADS, w1=normal(6, 32), w2=normal(32, 3, seed=1))
    whole, half = tmp_path / "whole.json", tmp_path / "half.json"
    whole.write_text(json.dumps({"w1": [*range(8), *range(16, 24)]}))
    assert len(kept(made(path, tmp_path / "out", slots=whole), "w2:0") or []) == 16
    half.write_text(json.dumps({"w1": list(range(12))}))
    with pytest.raises(InputError, match="go together"):
        planned(path, slots=half)


def test_a_plan_is_applied_to_other_weights_and_continued(net: Path, tmp_path: Path) -> None:
    first = made(net, tmp_path / "first", ratio=0.4)
    plan = tmp_path / "first" / "plan.json"
    assert made(net, tmp_path / "same", plan=plan) == first
    assert (tmp_path / "same/model.onnx").read_bytes() == (tmp_path / "first/model.onnx").read_bytes()
    assert planned(_net(tmp_path / "trained.onnx", 7), plan=plan) == first
    more = made(net, tmp_path / "more", plan=plan, ratio=0.7)
    for where in ("w1:1", "w2:1"):
        assert set(kept(more, where) or []) < set(kept(first, where) or range(48))
    checked = verify(tmp_path / "more", model=net, reproduce=True)
    assert checked["is_sound"], checked["checks"]


def test_a_plan_of_another_graph_is_refused(net: Path, tmp_path: Path) -> None:
    other = saved(tmp_path / "h.onnx", HEADS, w1=normal(6, 32), w2=normal(32, 3, seed=1))
    made(net, tmp_path / "first", ratio=0.4)
    with pytest.raises(InputError, match=r"plan\.json"):
        planned(other, plan=tmp_path / "first" / "plan.json")


def test_layers_of_a_plan_go_too(tmp_path: Path) -> None:
    more = """d = MatMul(rs, w5) e = Relu(d) f = MatMul(e, w6) t = Add(f, rs)
    h = MatMul(t, w7) u = Add(h, t) y = MatMul(u, w4)"""
    text = NET.replace("y = MatMul(rs, w4)", more)
    shapes = [(6, 32), (32, 48), (48, 32), (32, 3), (32, 32), (32, 32), (32, 32)]
    weights = {f"w{i + 1}": normal(*shape, seed=i) for i, shape in enumerate(shapes)}
    net = saved(tmp_path / "l.onnx", text, **weights)
    first = sparsecc.compile(net, output=tmp_path / "first", measure=False, prune=["layers"], ratio=0.2)
    assert len(first.plan["dropped_nodes"]) == 4
    plan = tmp_path / "first" / "plan.json"
    again = sparsecc.compile(
        net, output=tmp_path / "again", measure=False, plan=plan, ratio_for={"w2:1": 0.5}
    )
    assert again.plan["dropped_nodes"] == first.plan["dropped_nodes"]
    assert len(again.plan["tensors"]["w2"]["1"]["keep"]) == 24
    assert again.report["verification"]["status"] == "proved"


def test_dead_slots_stay_where_the_user_says_so(tmp_path: Path) -> None:
    w1 = normal(6, 16)
    w1[:, [2, 5]] = 0
    text = """<ir_version: 8, opset_import: ["" : 17]>
g (float[n,6] x) => (float[n,3] y) { a = Gemm(x, w1, b1) h = Relu(a) y = Gemm(h, w2, b2) }"""
    weights = {"b1": normal(16, seed=1), "w2": normal(16, 3, seed=2), "b2": normal(3, seed=3)}
    path = saved(tmp_path / "d.onnx", text, w1=w1, **weights)
    gone = set(range(16)) - set(kept(planned(path, dead_only=True), "w1:1") or [])
    assert gone == {2, 5}
    some = made(path, tmp_path / "some", dead_only=True, protect={"w1:1": (5,)})
    assert set(range(16)) - set(kept(some, "w1:1") or []) == {2}
