"""A checked model as `onnx_ir.Model`: external data mapped, sparse constants made dense."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from onnx import numpy_helper

from sparsecc.errors import InputError
from sparsecc.escaping import one_line
from sparsecc.ir.mapped import stored_tensor
from sparsecc.loading.external import HELD_LOCATION, Extent, ExternalFiles
from sparsecc.loading.limits import DEFAULT_LIMITS, Limits
from sparsecc.loading.open_model import OpenedModel, open_bytes, open_model
from sparsecc.loading.tensors import TensorChecker, byte_count

_HELD = f"{HELD_LOCATION}."
"""The location of what is held in memory."""

NOTES = "sparsecc.notes"
"""Key of `model.meta` under which the notes of the front door stand, a tuple of lines."""

FILES = "sparsecc.files"
"""Where the `ExternalFiles` stand that the model's weights lie in."""

TYPES = "sparsecc.types"
"""Key of `model.meta` under which stand the types (maps, opaque ones) of inputs and outputs that onnx_ir
cannot hold: value name -> onnx.TypeProto. They must be put back into the proto when the model is written."""

_LARGE = 1024
"""Bytes of an initializer that is held outside of the message it was read with."""


def load_ir(path: Path, limits: Limits = DEFAULT_LIMITS) -> ir.Model:
    """The model at `path` behind the front door. Its external tensors and the large ones of its own file are views of
    mapped files: nothing is read before it is used, and no file is opened by name again. InputError for what is
    refused."""
    opened = open_model(path, limits, apart=True)
    try:
        return to_ir(opened, limits)
    except InputError as e:
        raise InputError(f"{one_line(str(path), 120)}: {e}") from e


def load_ir_bytes(data: bytes, limits: Limits = DEFAULT_LIMITS) -> ir.Model:
    """As `load_ir`, from bytes: a model with external data is refused."""
    return to_ir(open_bytes(data, limits), limits)


def to_ir(opened: OpenedModel, limits: Limits) -> ir.Model:
    """The opened model as onnx_ir reads it. Takes over the proto: do not use that afterwards."""
    types = _take_unknown_types(opened.proto)
    _spell_default_domain(opened.proto)
    checker = TensorChecker(opened.files, limits)
    for graph in _proto_graphs(opened.proto):
        _make_dense(graph, checker)
    held = _taken_out(opened.proto)
    try:
        model = ir.from_proto(_without_gaps(opened.proto) if held else opened.proto)
    except (ir.serde.SerdeError, ValueError, TypeError, KeyError, AttributeError, NotImplementedError) as e:
        raise InputError(f"onnx_ir cannot represent the model: {one_line(str(e))}") from e
    for inner in _ir_graphs(model):
        _read_apart(inner, opened.files, held)
    model.meta[NOTES] = opened.notes
    model.meta[FILES] = opened.files
    model.meta[TYPES] = types
    return model


def _spell_default_domain(model: onnx.ModelProto) -> None:
    """The default domain has two spellings, '' and 'ai.onnx': everything behind this knows the first."""
    for holder in (model, *model.functions):
        for opset in holder.opset_import:
            if opset.domain == "ai.onnx":
                opset.domain = ""
    for graph in _proto_graphs(model):
        for node in graph.node:
            if node.domain == "ai.onnx":
                node.domain = ""


def _take_unknown_types(model: onnx.ModelProto) -> dict[str, onnx.TypeProto]:
    """Clear the types that onnx_ir refuses to read, and return those of the model's inputs and outputs."""
    taken: dict[str, onnx.TypeProto] = {}
    for graph in _proto_graphs(model):
        values = [*graph.input, *graph.output] if isinstance(graph, onnx.GraphProto) else []
        for value in (*values, *graph.value_info):
            if _is_unknown(value.type):
                if graph is model.graph:
                    taken[value.name] = onnx.TypeProto()
                    taken[value.name].CopyFrom(value.type)
                value.ClearField("type")
    return taken


def _is_unknown(kind: onnx.TypeProto) -> bool:
    while True:
        case = kind.WhichOneof("value")
        if case not in ("sequence_type", "optional_type"):
            return case in ("map_type", "opaque_type")
        kind = getattr(kind, case).elem_type


def _proto_graphs(model: onnx.ModelProto) -> Iterator[onnx.GraphProto | onnx.FunctionProto]:
    stack: list[onnx.GraphProto | onnx.FunctionProto] = [model.graph, *model.functions]
    while stack:
        graph = stack.pop()
        yield graph
        for node in graph.node:
            for attribute in node.attribute:
                stack.extend(attribute.graphs)
                if attribute.type == onnx.AttributeProto.GRAPH:
                    stack.append(attribute.g)


def _make_dense(graph: onnx.GraphProto | onnx.FunctionProto, checker: TensorChecker) -> None:
    if isinstance(graph, onnx.GraphProto):
        for sparse in graph.sparse_initializer:
            graph.initializer.append(_dense(sparse, checker))
        del graph.sparse_initializer[:]
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.type == onnx.AttributeProto.SPARSE_TENSOR:
                tensor = _dense(attribute.sparse_tensor, checker)
                attribute.CopyFrom(onnx.helper.make_attribute("value", tensor))


def _dense(sparse: onnx.SparseTensorProto, checker: TensorChecker) -> onnx.TensorProto:
    """A checked sparse tensor with its zeros written out; its size is bounded by the limit dense_bytes."""
    values = sparse.values
    if values.data_location == onnx.TensorProto.EXTERNAL:
        raise InputError("the values of a sparse tensor are external data: export them dense")
    indices = checker.values(sparse.indices)
    flat = indices if indices.ndim == 1 else np.ravel_multi_index(tuple(indices.T), tuple(sparse.dims))
    array = numpy_helper.to_array(values)
    dense = np.zeros(math.prod(sparse.dims), array.dtype)
    dense[flat] = array
    return numpy_helper.from_array(dense.reshape(tuple(sparse.dims)), values.name)


def _ir_graphs(model: ir.Model) -> Iterator[ir.Graph | ir.Function]:
    stack: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    while stack:
        graph = stack.pop()
        yield graph
        for node in graph:
            for attribute in node.attributes.values():
                if attribute.type == ir.AttributeType.GRAPH:
                    stack.append(attribute.as_graph())
                elif attribute.type == ir.AttributeType.GRAPHS:
                    stack.extend(attribute.as_graphs())


def _taken_out(model: onnx.ModelProto) -> list[bytes]:
    """The bytes of large constants, taken out of the proto, where their numbers stand for them: protobuf keeps every
    byte of a message for as long as any part of it lives, and hands out copies."""
    held: list[bytes] = []
    for graph in _proto_graphs(model):
        for tensor in _constants(graph):
            if tensor.data_location != onnx.TensorProto.EXTERNAL and len(raw := tensor.raw_data) >= _LARGE:
                tensor.ClearField("raw_data")
                tensor.data_location = onnx.TensorProto.EXTERNAL
                tensor.external_data.add(key="location", value=_HELD)
                tensor.external_data.add(key="offset", value=str(len(held)))
                held.append(raw)
    return held


def _constants(graph: onnx.GraphProto | onnx.FunctionProto) -> Iterator[onnx.TensorProto]:
    if isinstance(graph, onnx.GraphProto):
        yield from graph.initializer
    for node in graph.node:
        if node.op_type == "Constant":
            yield from (attribute.t for attribute in node.attribute if attribute.name == "value")


def _without_gaps(model: onnx.ModelProto) -> onnx.ModelProto:
    """The message again in memory of its own; the other is empty then."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    model.Clear()
    return copy


def _read_apart(graph: ir.Graph | ir.Function, files: ExternalFiles, held: Sequence[bytes]) -> None:
    """The constants that lie outside of the message: in mapped files, or in `held`."""

    def read(tensor: ir.ExternalTensor) -> ir.TensorProtocol:
        if held and tensor.location == _HELD:
            return _over(tensor, held[tensor.offset or 0])
        return _mapped(tensor, files)

    if isinstance(graph, ir.Graph):
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                value.const_value = read(value.const_value)
    for node in graph:
        for name, attribute in list(node.attributes.items()):
            if attribute.is_ref():
                continue
            if attribute.type == ir.AttributeType.TENSOR and isinstance(attribute.value, ir.ExternalTensor):
                node.attributes[name] = ir.AttrTensor(name, read(attribute.value))
            elif attribute.type == ir.AttributeType.TENSORS:
                tensors = [read(t) if isinstance(t, ir.ExternalTensor) else t for t in attribute.value]
                node.attributes[name] = ir.AttrTensors(name, tensors)


def _over(tensor: ir.ExternalTensor, data: bytes) -> ir.TensorProtocol:
    """The tensor over these bytes; sub-byte types stay packed."""
    shape = ir.Shape(tuple(d for d in tensor.shape if isinstance(d, int)))
    array = np.frombuffer(data, np.uint8)
    if tensor.dtype.bitwidth < 8:
        return ir.PackedTensor(
            array, tensor.dtype, shape=shape, name=tensor.name, doc_string=tensor.doc_string
        )
    values = array.view(tensor.dtype.numpy()).reshape(shape.numpy())
    return ir.Tensor(values, tensor.dtype, shape=shape, name=tensor.name, doc_string=tensor.doc_string)


def _mapped(tensor: ir.ExternalTensor, files: ExternalFiles) -> ir.TensorProtocol:
    """The tensor over the mapped file that the front door has checked; sub-byte types stay packed."""
    shape = ir.Shape(tuple(d for d in tensor.shape if isinstance(d, int)))
    length = byte_count(tensor.dtype.value, math.prod(shape.numpy()))
    extent = Extent(str(tensor.location), tensor.offset or 0, length)
    return stored_tensor(lambda: files.payload(extent), tensor.dtype, shape, tensor.name, tensor.doc_string)
