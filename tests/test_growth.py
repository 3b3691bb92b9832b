"""Very long and very wide graphs: what a command costs grows with their size, not with its square."""

from __future__ import annotations

import resource
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import sparsecc

SECONDS = 30.0
"""Of processor time, so that a busy machine does not matter; a square of 50,000 takes many times that."""


def chain(length: int) -> onnx.ModelProto:
    """`length` operators, each reading the one before."""
    nodes = [helper.make_node("Relu" if i % 2 else "Neg", [f"v{i}"], [f"v{i + 1}"]) for i in range(length)]
    return model(nodes, f"v{length}", 8, [])


def fan(readers: int) -> onnx.ModelProto:
    """One value that `readers` operators read, joined again."""
    weight = numpy_helper.from_array(np.ones((8, 8), np.float32), "w")
    nodes = [helper.make_node("MatMul", ["v0", "w"], ["v"])]
    nodes += [helper.make_node("Relu", ["v"], [f"r{i}"]) for i in range(readers)]
    nodes += [helper.make_node("Concat", [f"r{i}" for i in range(readers)], ["y"], axis=1)]
    return model(nodes, "y", 8 * readers, [weight])


def model(
    nodes: list[onnx.NodeProto], output: str, width: int, weights: list[onnx.TensorProto]
) -> onnx.ModelProto:
    inputs = [helper.make_tensor_value_info("v0", TensorProto.FLOAT, [1, 8])]
    outputs = [helper.make_tensor_value_info(output, TensorProto.FLOAT, [1, width])]
    graph = helper.make_graph(nodes, "g", inputs, outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def processor_seconds() -> float:
    """Of this process and of the workers that have ended."""
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(sum(resource.getrusage(kind)[:2]) for kind in kinds)


@pytest.mark.slow
@pytest.mark.parametrize("make", [lambda: chain(50_000), lambda: fan(20_000)], ids=["chain", "fan"])
def test_inspecting_takes_no_square(make: object, tmp_path: Path) -> None:
    assert callable(make)
    onnx.save(make(), tmp_path / "m.onnx")
    begun = processor_seconds()
    sparsecc.inspect(tmp_path / "m.onnx")
    assert processor_seconds() - begun < SECONDS
