"""Cutting a model out of another: some of its nodes, what they take from before them as inputs.

`extract` cuts a graph that we hold, to be run on values that we hold; `cut_out` a file, for whom it fails.
"""

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


def cut_out(model: onnx.ModelProto, nodes: Sequence[int]) -> onnx.ModelProto:
    """The file's model of these nodes only: what they read and nobody makes becomes an input, what nobody reads of
    theirs an output.

    Everything else is left byte for byte as the file has it, sparse initializers too, which `ir.Model` cannot hold:
    the result must still fail as the whole did.
    """
    cut = onnx.ModelProto()
    cut.CopyFrom(model)
    graph = cut.graph
    chosen = [model.graph.node[i] for i in sorted(nodes)]
    known = _types(model)
    read = {name for node in chosen for name in _reads(node)}
    made = {name for node in chosen for name in node.output if name}
    for entries in (graph.node, graph.input, graph.output, graph.initializer, graph.value_info):
        del entries[:]
    graph.node.extend(chosen)
    weights = [t for t in model.graph.initializer if t.name in read]
    graph.initializer.extend(weights)
    fed = read - made - {t.name for t in weights} - {s.values.name for s in graph.sparse_initializer}
    graph.input.extend(known[name] for name in sorted(fed) if name in known)
    declared = [v for v in model.graph.output if v.name in made]
    loose = sorted(made - read - {v.name for v in declared})
    graph.output.extend([*declared, *(known[n] for n in loose)])
    return cut


def _reads(node: onnx.NodeProto) -> set[str]:
    """Names a node reads, those inside its bodies too."""
    names = {name for name in node.input if name}
    for attribute in node.attribute:
        for graph in [attribute.g, *attribute.graphs]:
            for inner in graph.node:
                names |= _reads(inner)
    return names


def _types(model: onnx.ModelProto) -> dict[str, onnx.ValueInfoProto]:
    """What is known of every value; a bare name where nothing is."""
    try:
        inferred = onnx.shape_inference.infer_shapes(model)
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError):
        inferred = model
    known = {name: onnx.ValueInfoProto(name=name) for node in model.graph.node for name in node.output}
    graph = inferred.graph
    return known | {v.name: v for v in (*graph.value_info, *graph.input, *graph.output)}
