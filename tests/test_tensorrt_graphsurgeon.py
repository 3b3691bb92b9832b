"""Models go out to onnx-graphsurgeon and come back in with the user's edits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from sparsecc.backends.nvidia.graph_surgeon import from_graphsurgeon, to_graphsurgeon
from sparsecc.errors import InputError
from tests.tensorrt_graphs import conv_residual


def _run(model: ir.Model, feeds: dict[str, np.ndarray]) -> np.ndarray:
    data = ir.to_proto(model).SerializeToString()
    session = ort.InferenceSession(data, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, feeds)[0])


def test_edits_come_back(tmp_path: Path) -> None:
    onnx.save(conv_residual(), tmp_path / "model.onnx")
    graph = to_graphsurgeon(tmp_path / "model.onnx")
    feeds = {"x": np.random.default_rng(0).standard_normal((1, 3, 16, 16)).astype(np.float32)}
    same = from_graphsurgeon(graph)
    reference = _run(ir.load(tmp_path / "model.onnx"), feeds)
    np.testing.assert_array_equal(_run(same, feeds), reference)
    relu = next(node for node in graph.nodes if node.op == "Relu")
    relu.op = "Abs"
    nodes = len(graph.nodes)
    edited = from_graphsurgeon(graph)
    assert len(graph.nodes) == nodes
    assert {node.op_type for node in edited.graph} == {"Conv", "Abs", "Add"}
    assert np.abs(_run(edited, feeds) - reference).max() > 1e-3


def test_files_that_are_no_model(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"\xff\xff\xff no model")
    for name in ("model.onnx", "missing.onnx"):
        with pytest.raises(InputError, match=r"not an ONNX model|cannot open the model"):
            to_graphsurgeon(tmp_path / name)
