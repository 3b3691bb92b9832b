"""Large weights of a model file, moved out of it before it is parsed: the model is the same, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from sparsecc.errors import InputError
from sparsecc.loading import weights_apart
from sparsecc.loading.external import HELD_LOCATION
from sparsecc.loading.models import load_ir
from sparsecc.loading.open_model import open_model

SIDE = 256
"""A weight has SIDE * SIDE floats: large enough to be moved."""


@pytest.fixture(autouse=True)
def any_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights_apart, "FILE", 0)


def model() -> onnx.ModelProto:
    """Two large weights, of odd places in the file, a small one, and a large constant of a node."""
    draw = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {
        "w": draw.standard_normal((SIDE, SIDE), dtype=np.float32),
        "small": np.ones(SIDE, np.float32),
        "half": draw.standard_normal((SIDE, SIDE)).astype(np.float16),
    }
    constant = numpy_helper.from_array(draw.standard_normal((SIDE, SIDE), dtype=np.float32), "c")
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Add", ["a", "small"], ["b"]),
        helper.make_node("Cast", ["half"], ["h"], to=TensorProto.FLOAT),
        helper.make_node("Constant", [], ["k"], value=constant),
        helper.make_node("MatMul", ["b", "h"], ["d"]),
        helper.make_node("MatMul", ["d", "k"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", SIDE]) for name in "xy"]
    weights = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def saved(proto: onnx.ModelProto, folder: Path) -> Path:
    (folder / "m.onnx").write_bytes(proto.SerializeToString())
    return folder / "m.onnx"


def test_the_model_is_the_same(tmp_path: Path) -> None:
    proto = model()
    opened = open_model(saved(proto, tmp_path), apart=True)
    held = opened.files.held
    assert held is not None
    assert held.size >= 6 * SIDE * SIDE
    assert len(opened.proto.SerializeToString()) < 5 * SIDE * SIDE  # the node's constant is still in it
    assert opened.files.names() == []
    found, wanted = load_ir(tmp_path / "m.onnx"), ir.from_proto(proto)
    assert found.graph.initializers.keys() == wanted.graph.initializers.keys()
    for name, value in wanted.graph.initializers.items():
        tensor, same = found.graph.initializers[name].const_value, value.const_value
        assert tensor is not None
        assert same is not None
        assert tensor.dtype == same.dtype
        np.testing.assert_array_equal(tensor.numpy(), same.numpy())
        assert tensor.numpy().flags.aligned
    assert [node.op_type for node in found.graph] == [node.op_type for node in wanted.graph]


def test_a_file_that_changes_later_changes_nothing(tmp_path: Path) -> None:
    path, proto = saved(model(), tmp_path), model()
    found = load_ir(path)
    path.write_bytes(b"")
    tensor = found.graph.initializers["w"].const_value
    assert tensor is not None
    np.testing.assert_array_equal(tensor.numpy(), numpy_helper.to_array(proto.graph.initializer[0]))


def _too_short(tensor: TensorProto) -> None:
    tensor.raw_data = tensor.raw_data[:-4]


def _twice(tensor: TensorProto) -> None:
    tensor.float_data.append(1)


def _negative(tensor: TensorProto) -> None:
    tensor.dims[0] = -SIDE


def _segmented(tensor: TensorProto) -> None:
    tensor.segment.begin = 0


def _ours(tensor: TensorProto) -> None:
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=HELD_LOCATION[:-1] + "x")


@pytest.mark.parametrize("damage", [_too_short, _twice, _negative, _segmented, _ours])
def test_what_is_refused_is_refused_in_the_same_words(
    damage: Callable[[TensorProto], None], tmp_path: Path
) -> None:
    proto = model()
    damage(proto.graph.initializer[0])
    path, told = saved(proto, tmp_path), []
    for apart in (False, True):
        with pytest.raises(InputError) as refused:
            open_model(path, apart=apart)
        told.append(str(refused.value))
    assert told[0] == told[1]


def test_a_cut_file_is_refused_wherever_it_is_cut(tmp_path: Path) -> None:
    data = saved(model(), tmp_path).read_bytes()
    for end in [*range(1, 40), *range(40, len(data), len(data) // 97)]:
        (tmp_path / "m.onnx").write_bytes(data[:end])
        told = []
        for apart in (False, True):
            with pytest.raises(InputError) as refused:
                open_model(tmp_path / "m.onnx", apart=apart)
            told.append(str(refused.value))
        assert told[0] == told[1]
