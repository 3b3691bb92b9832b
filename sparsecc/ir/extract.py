"""Cutting a model out of another: some of its nodes, what they take from before them as inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir import serde

from sparsecc.ir.subgraphs import reads


def outside(model: ir.Model, nodes: Sequence[ir.Node]) -> list[str]:
    """The values that nodes take from before them, constants apart."""
    inside = {v.name for node in nodes for v in node.outputs}
    constants = model.graph.initializers
    names = [v.name or "" for node in nodes for v in reads(node)]
    return [n for n in dict.fromkeys(names) if n not in inside and n not in constants]


def extract(
    model: ir.Model, nodes: Sequence[ir.Node], sample: Mapping[str, Any], outputs: Sequence[str]
) -> onnx.ModelProto:
    """A model of some nodes in order. `sample` holds a value for each of its inputs, which gives their types; its
    shapes are left open. Constants that are read and not in `sample` come along as they are now.
    """
    constants, known = {}, {}
    for node in nodes:
        for value in reads(node):
            known[value.name or ""] = value
            tensor = value.const_value
            if value.name in model.graph.initializers and value.name not in sample and tensor is not None:
                constants[value.name] = tensor
    graph = onnx.helper.make_graph(
        [serde.serialize_node(node) for node in nodes],
        "extract",
        [_input(name, value, known.get(name)) for name, value in sample.items()],
        [onnx.ValueInfoProto(name=name) for name in outputs],
        [
            serde.serialize_tensor(ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=name))
            for name, tensor in constants.items()
        ],
    )
    opsets = [onnx.helper.make_opsetid(domain, version) for domain, version in model.opset_imports.items()]
    version = min(int(model.ir_version or 10), 10)
    functions = [serde.serialize_function(function) for function in model.functions.values()]
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=version, functions=functions)


def _input(name: str, sample: Any, value: ir.Value | None) -> onnx.ValueInfoProto:
    """An input of the type of its sample; of the type that the model declares where it is no tensor."""
    if isinstance(sample, np.ndarray):
        kind = onnx.helper.np_dtype_to_tensor_dtype(sample.dtype)
        return onnx.helper.make_tensor_value_info(name, kind, None)
    if value is not None and value.type is not None:
        return onnx.ValueInfoProto(name=name, type=serde.serialize_type(value.type))
    kind = onnx.helper.np_dtype_to_tensor_dtype(sample[0].dtype) if sample else onnx.TensorProto.FLOAT
    return onnx.helper.make_tensor_sequence_value_info(name, kind, None)
