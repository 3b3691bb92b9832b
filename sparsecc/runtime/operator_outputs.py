"""How the outputs of an operator look that only its library knows: by running it alone."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import numpy as np
import onnx
from onnx import helper, numpy_helper

from sparsecc.errors import InputError
from sparsecc.runtime.session import open_session

Types = Mapping[str, onnx.TypeProto]
_LARGEST = 1 << 26
"""Elements of operands that are made up for such a run."""


class OperatorOutputs:
    """Runs single nodes, each once for operands of one kind: ones, or zeros for integers, where values are unknown."""

    def __init__(self) -> None:
        self._known: dict[bytes, list[onnx.TypeProto]] = {}

    def __call__(
        self, node: onnx.NodeProto, types: Types, values: Mapping[str, onnx.TensorProto]
    ) -> dict[str, onnx.TypeProto]:
        """The types of the outputs. ValueError where the node does not run."""
        model = _alone(node, types, values)
        key = model.SerializeToString(deterministic=True)
        if key not in self._known:
            self._known[key] = _run(model, types, values)
        return dict(zip(filter(None, node.output), self._known[key], strict=True))


def _alone(node: onnx.NodeProto, types: Types, values: Mapping[str, onnx.TensorProto]) -> onnx.ModelProto:
    """A model of this node; its known operands are initializers."""
    names = dict.fromkeys(name for name in node.input if name)
    if unknown := [name for name in names if name not in types]:
        raise ValueError(f"nothing is known of its operand {unknown[0]}")
    inputs = [onnx.ValueInfoProto(name=name, type=types[name]) for name in names if name not in values]
    constants = []
    for name in filter(values.__contains__, names):
        constants.append(onnx.TensorProto())
        constants[-1].CopyFrom(values[name])
        constants[-1].name = name
    outputs = [onnx.ValueInfoProto(name=name) for name in node.output if name]
    graph = helper.make_graph([node], "alone", inputs, outputs, constants)
    opsets = [helper.make_opsetid(domain, version) for domain, version in {"": 17, node.domain: 1}.items()]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def _run(
    model: onnx.ModelProto, types: Types, values: Mapping[str, onnx.TensorProto]
) -> list[onnx.TypeProto]:
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in model.graph.input}
    if sum(map(prod, shapes.values())) > _LARGEST:
        raise ValueError("its operands are too large to try it on")
    feeds = {}
    for name, shape in shapes.items():
        dtype = helper.tensor_dtype_to_np_dtype(types[name].tensor_type.elem_type)
        feeds[name] = np.zeros(shape, dtype) if np.issubdtype(dtype, np.integer) else np.ones(shape, dtype)
    try:
        results = open_session(model, where=model.graph.node[0].op_type).run(feeds)
    except InputError as e:
        raise ValueError(str(e).rsplit(": ", 1)[0]) from e
    found = []
    for value in model.graph.output:
        tensor = numpy_helper.from_array(np.asarray(results[value.name]))
        found.append(helper.make_tensor_type_proto(tensor.data_type, tensor.dims))
    return found
