"""`--keep` and `--only`: globs, modules by their path, and names that are nowhere."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx
import pytest

from sparsecc import api
from sparsecc.errors import InputError
from sparsecc.graph.patterns import matches, module_of
from tests.repair_models import normal
from tests.test_loading import saved

NET = """<ir_version: 8, opset_import: ["" : 17]>
g (float[n,6] x) => (float[n,3] y) {
    a = MatMul(x, w1) ra = Relu(a) b = MatMul(ra, w2) rb = Relu(b) y = MatMul(rb, w3) }"""


@pytest.fixture
def net(tmp_path: Path) -> Path:
    """Two hidden layers of 8 and 10; the second's node stands in module `layer4.0.fc`, its weight has no name."""
    path = saved(
        tmp_path / "m.onnx", NET, w1=normal(6, 8), w2=normal(8, 10, seed=2), w3=normal(10, 3, seed=3)
    )
    model = onnx.load(path)  # the text form has no names of nodes, and none with dots
    first, second = [node for node in model.graph.node if node.op_type == "MatMul"][:2]
    model.graph.initializer[0].name = first.input[1] = "layer3.fc.weight"
    second.name = "/layer4/layer4.0/fc/MatMul"
    onnx.save(model, path)
    return path


def free(path: Path, keep: Sequence[str] = (), only: Sequence[str] = ()) -> list[int]:
    groups = api.inspect(path, keep=keep, only=only)["groups"]
    return sorted(g["size"] for g in groups if g["prunable"])


def test_a_bare_name_is_its_module_with_all_below(net: Path) -> None:
    assert free(net) == [8, 10]
    assert free(net, keep=["layer3"]) == [10]
    assert free(net, only=["layer3"]) == [8]
    assert free(net, keep=["layer4"]) == free(net, keep=["layer4.0.fc"]) == free(net, keep=["layer4.*"]) == []


@pytest.mark.parametrize("option", ["keep", "only"])
@pytest.mark.parametrize(
    ("pattern", "near"),
    [("layr3*", "'layer3"), ("layer3.fc.wieght", "'layer3.fc.weight'"), ("layer", "'layer3")],
)
def test_what_matches_nothing_is_refused_with_the_nearest_names(
    net: Path, tmp_path: Path, option: str, pattern: str, near: str
) -> None:
    told = f"--{option} '.*' matches nothing: the nearest names are .*{near}"
    keep, only = ([pattern], []) if option == "keep" else ([], [pattern])
    with pytest.raises(InputError, match=told):
        free(net, keep, only)
    with pytest.raises(InputError, match=told):
        api.compile(net, output=tmp_path / "out", ratio=0.3, measure=False, keep=keep, only=only)


@pytest.mark.parametrize(
    ("node", "module"),
    [
        ("/layer4/layer4.0/conv1/Conv", "layer4.0.conv1"),
        ("/encoder/layers.0/mlp/fc1/MatMul", "encoder.layers.0.mlp.fc1"),
        ("Conv_3", ""),
        ("/Relu", ""),
    ],
)
def test_the_module_of_a_node(node: str, module: str) -> None:
    assert module_of(node) == module


def test_a_bare_name_ends_where_a_part_of_a_path_ends() -> None:
    assert matches("layer4.0.conv1.weight", "layer4")
    assert matches("layer4.0.conv1.weight", "layer4.0")
    assert not matches("layer41.conv1.weight", "layer4")
    assert not matches("block.layer4.weight", "layer4")
