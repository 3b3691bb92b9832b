"""What a model file holds besides its graph: tensors of every type, sparse tensors, external data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from sparsecc.loading.models import TYPES, load_ir, load_ir_bytes
from tests.test_front_door import model, notes, refusal


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("kind", [k for k in TensorProto.DataType.values() if k])
def test_every_type_passes_in_every_form(kind: int, packed: bool) -> None:
    if kind == TensorProto.STRING:
        tensor = numpy_helper.from_array(np.array([b"a", b"", b"c"], object), "w")
    else:
        values = np.ones(3, helper.tensor_dtype_to_np_dtype(kind))
        tensor = numpy_helper.from_array(values, "w")
        tensor = tensor if packed else helper.make_tensor("w", kind, [3], values)
    assert tensor.data_type == kind
    proto = model("g (float[1] x) => (float[1] y) { y = Relu (x) }")
    proto.graph.initializer.append(tensor)
    assert notes(proto) == ()
    tensor.dims[0] = 9
    del proto.graph.initializer[:]
    proto.graph.initializer.append(tensor)
    refusal(proto)


def sparse(values: Any, indices: Any, dims: list[int]) -> onnx.ModelProto:
    proto = model("g (float[4,2] x) => (float[] y) { y = Add (x, w) }")
    pair = [
        numpy_helper.from_array(np.array(values, np.float32), "w"),
        numpy_helper.from_array(np.array(indices), ""),
    ]
    proto.graph.ClearField("initializer")
    proto.graph.sparse_initializer.append(helper.make_sparse_tensor(pair[0], pair[1], dims))
    return proto


@pytest.mark.parametrize("indices", [[1, 6], [[0, 1], [3, 0]]])
def test_sparse_tensors_become_dense(indices: Any) -> None:
    loaded = load_ir_bytes(sparse([5.0, 7.0], indices, [4, 2]).SerializeToString())
    tensor = loaded.graph.initializers["w"].const_value
    assert tensor is not None
    assert tensor.numpy().tolist() == [[0, 5], [0, 0], [0, 0], [7, 0]]


@pytest.mark.parametrize(
    ("values", "indices", "dims", "expected"),
    [
        ([1.0], [8], [4, 2], "out of range"),
        ([1.0], [-1], [4, 2], "out of range"),
        ([1.0], [[0, 2]], [4, 2], "out of range"),
        ([1.0, 2.0], [1], [4, 2], "indices must be"),
        ([1.0], [1], [1 << 20, 1 << 20], "dense_bytes"),
        ([[1.0]], [1], [4, 2], "do not fit"),
    ],
)
def test_unsound_sparse_tensors_are_refused(
    values: Any, indices: Any, dims: list[int], expected: str
) -> None:
    assert expected in refusal(sparse(values, indices, dims))


def test_types_that_onnx_ir_cannot_hold_are_kept_aside() -> None:
    kind = helper.make_sequence_type_proto(
        helper.make_map_type_proto(7, helper.make_tensor_type_proto(1, None))
    )
    proto = model("g (float[1] x) => (float[1] y) { y = Relu (x) }")
    proto.graph.output[0].type.CopyFrom(kind)
    assert load_ir_bytes(proto.SerializeToString()).meta[TYPES] == {"y": kind}


@pytest.mark.parametrize("kind", ["FLOAT", "FLOAT16", "BFLOAT16", "INT8", "INT4", "FLOAT8E4M3FN", "BOOL"])
def test_external_data_is_mapped_and_equal(tmp_path: Path, kind: str) -> None:
    dtype = helper.tensor_dtype_to_np_dtype(TensorProto.DataType.Value(kind))
    values = (np.arange(15) % 2).astype(dtype)
    proto = model("g (float[1] x) => (float[1] y) { y = Relu (x) }")
    tensor = numpy_helper.from_array(values, "w")
    payload = tensor.raw_data
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "w.bin").write_bytes(b"skip" + payload + b"rest")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "./sub/w.bin"), ("offset", "4"), ("length", str(len(payload)))):
        tensor.external_data.add(key=key, value=value)
    node = helper.make_node("Constant", [], ["c"])
    node.attribute.append(helper.make_attribute("value", tensor))
    proto.graph.initializer.append(tensor)
    proto.graph.node.append(node)
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    loaded = load_ir(tmp_path / "m.onnx")
    constants = [loaded.graph.initializers["w"].const_value, loaded.graph[1].attributes["value"].value]
    for constant in constants:
        assert isinstance(constant, ir.Tensor | ir.PackedTensor)
        np.testing.assert_array_equal(constant.numpy().astype(np.float32), values.astype(np.float32))
        assert constant.tobytes() == payload
    ir.save(loaded, tmp_path / "saved.onnx")
    again = load_ir(tmp_path / "saved.onnx").graph.initializers["w"].const_value
    assert again is not None
    assert again.tobytes() == payload
