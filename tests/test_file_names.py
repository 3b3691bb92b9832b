"""plan.json, patterns and masks speak of the tensors and axes of the user's file, whatever normalisation stored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import sparsecc
from sparsecc.cli import main
from sparsecc.errors import InputError
from sparsecc.loading.models import load_ir
from sparsecc.loading.normalise import normalise


@pytest.fixture(scope="module")
def linear(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Linear layers (out, in), each behind a Transpose, as exporters write them without their optimizer; the last
    weight is computed of two."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("file") / "linear.onnx"

    def weight(name: str, *shape: int) -> onnx.TensorProto:
        return numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name)

    nodes = [
        helper.make_node("Transpose", ["enc.fc1.weight"], ["t1"], perm=[1, 0]),
        helper.make_node("MatMul", ["x", "t1"], ["a"], "/enc/fc1/MatMul"),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Transpose", ["enc.fc2.weight"], ["t2"], perm=[1, 0]),
        helper.make_node("MatMul", ["b", "t2"], ["c"], "/enc/fc2/MatMul"),
        helper.make_node("Relu", ["c"], ["d"]),
        helper.make_node("Mul", ["head.weight", "head.scale"], ["scaled"]),
        helper.make_node("MatMul", ["d", "scaled"], ["y"], "/head/MatMul"),
    ]
    weights = [
        weight("enc.fc1.weight", 24, 6),
        weight("enc.fc2.weight", 16, 24),
        weight("head.weight", 16, 4),
    ]
    weights.append(weight("head.scale", 16, 1))
    ends = [helper.make_tensor_value_info(n, 1, ["n", s]) for n, s in (("x", 6), ("y", 4))]
    graph = helper.make_graph(nodes, "net", ends[:1], ends[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def compiled(path: Path, out: Path, **said: Any) -> dict[str, Any]:
    sparsecc.compile(path, output=out, measure=False, align=1, **said)
    plan: dict[str, Any] = json.loads((out / "plan.json").read_text())
    return plan


def test_a_plan_names_what_the_file_has(linear: Path, tmp_path: Path) -> None:
    assert "enc.fc1.weight.T" in normalise(load_ir(linear)).graph.initializers, "it is stored otherwise"
    plan = compiled(linear, tmp_path / "out", ratio=0.4)
    shapes = {one.name: tuple(one.dims) for one in onnx.load(linear).graph.initializer}
    assert set(plan["tensors"]) == {"enc.fc1.weight", "enc.fc2.weight", "scaled"}
    for name in ("enc.fc1.weight", "enc.fc2.weight"):
        for axis, fact in plan["tensors"][name].items():
            assert fact["size"] == shapes[name][int(axis)]
    assert plan["tensors"]["enc.fc1.weight"]["0"]["keep"] == plan["tensors"]["enc.fc2.weight"]["1"]["keep"]
    members = {tuple(member) for group in plan["groups"] for member in group["members"]}
    assert {("enc.fc1.weight", 0), ("enc.fc2.weight", 1)} <= members
    assert plan["names"]["enc.fc1.weight.T"] == {"of": ["enc.fc1.weight"], "order": [1, 0]}
    assert plan["names"]["scaled"] == {"of": ["head.weight", "head.scale"]}


def test_zeroing_by_hand_what_the_plan_says_gives_the_compiled_model(linear: Path, tmp_path: Path) -> None:
    """With the file and the plan alone, and none of ours."""
    import onnxruntime

    plan = compiled(linear, tmp_path / "out", ratio=0.4, keep=["head"])
    model = onnx.load(linear)
    for one in model.graph.initializer:
        array = numpy_helper.to_array(one).copy()
        for axis, fact in plan["tensors"].get(one.name, {}).items():
            gone = np.setdiff1d(np.arange(fact["size"]), fact["keep"])
            if fact["summed"]:
                array[(slice(None),) * int(axis) + (gone,)] = 0
        one.CopyFrom(numpy_helper.from_array(array, one.name))
    x = np.random.default_rng(1).standard_normal((5, 6)).astype(np.float32)
    wanted, found = (
        onnxruntime.InferenceSession(source).run(None, {"x": x})[0]
        for source in (model.SerializeToString(), str(tmp_path / "out" / "model.onnx"))
    )
    assert np.allclose(wanted, found, atol=1e-4)


def test_it_is_verified_and_gone_on_from(linear: Path, tmp_path: Path) -> None:
    first = compiled(linear, tmp_path / "first", ratio=0.3)
    assert main(["verify", str(tmp_path / "first"), "--model", str(linear)]) == 0
    second = compiled(linear, tmp_path / "second", ratio=0.6, plan=tmp_path / "first" / "plan.json")
    for name, axes in first["tensors"].items():
        for axis, fact in axes.items():
            assert set(second["tensors"][name][axis]["keep"]) <= set(fact["keep"])
    assert main(["verify", str(tmp_path / "second"), "--model", str(linear)]) == 0


def test_a_plan_in_names_of_ours_is_still_read(linear: Path, tmp_path: Path) -> None:
    plan = compiled(linear, tmp_path / "first", ratio=0.3)
    old = {**plan, "tensors": dict(plan["tensors"])}
    entry = old["tensors"].pop("enc.fc1.weight")
    old["tensors"]["enc.fc1.weight.T"] = {str(1 - int(axis)): fact for axis, fact in entry.items()}
    (tmp_path / "old.json").write_text(json.dumps(old))
    again = compiled(linear, tmp_path / "again", plan=tmp_path / "old.json")
    assert again["tensors"] == plan["tensors"]


def kept_of(plan: dict[str, Any], tensor: str, axis: int) -> int:
    return int(next(g["kept"] for g in plan["groups"] if [tensor, axis] in g["members"]))


@pytest.mark.parametrize(
    "pattern", ["enc.fc1.weight:0", "enc.fc1.weight", "enc.fc1", "enc.fc1*", "enc.fc1.weight.T:1"]
)
def test_patterns_in_either_name(pattern: str, linear: Path, tmp_path: Path) -> None:
    plan = compiled(linear, tmp_path / "out", ratio=0.3, keep=[pattern])
    assert kept_of(plan, "enc.fc1.weight", 0) == 24
    assert kept_of(plan, "enc.fc2.weight", 0) < 16


@pytest.mark.parametrize("where", ["enc.fc1.weight:0", "enc.fc1.weight.T:1"])
def test_why_in_either_name(where: str, linear: Path) -> None:
    assert sparsecc.inspect(linear, why=where)["why"]["pinned"] is None
    found = sparsecc.inspect(linear)
    assert ["enc.fc1.weight", 0] in [member for group in found["groups"] for member in group["members"]]


def test_masks_by_the_files_axes(linear: Path, tmp_path: Path) -> None:
    whole = np.ones((24, 6), dtype=bool)
    whole[[3, 5]] = False
    for number, said in enumerate(
        ({"enc.fc1.weight:0": np.delete(np.arange(24), [3, 5])}, {"enc.fc1.weight": whole})
    ):
        np.savez(tmp_path / f"{number}.npz", **said)  # type: ignore[arg-type]
        plan = compiled(linear, tmp_path / str(number), slots=tmp_path / f"{number}.npz")
        assert set(range(24)) - set(plan["tensors"]["enc.fc1.weight"]["0"]["keep"]) == {3, 5}


@pytest.mark.parametrize("option", ["keep", "only"])
def test_what_matches_nothing_is_an_error_with_the_nearest_names(
    option: str, linear: Path, tmp_path: Path
) -> None:
    said: dict[str, Any] = {option: ["enc.fc3.weight"]}
    with pytest.raises(
        InputError, match=rf"--{option} 'enc.fc3.weight' matches nothing: .*'enc.fc[12].weight'"
    ):
        sparsecc.compile(linear, output=tmp_path / "out", ratio=0.3, measure=False, **said)
    with pytest.raises(InputError, match="matches nothing"):
        sparsecc.inspect(linear, **said)
