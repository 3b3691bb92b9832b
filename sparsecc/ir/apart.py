"""A graph apart from its large weights: whoever runs, checks or writes a model copies none of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import onnx
import onnx_ir as ir

LARGE = 1 << 12
"""Bytes of a weight that is held apart."""

_NOWHERE = "sparsecc.apart"

FED = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE})
"""Types of weights that may be inputs: of integers a runtime may demand that they are constants."""


@dataclass(frozen=True)
class Apart:
    """A model whose large weights are inputs, by name, behind its own: `graph`, serialized, and these `weights`.
    `outputs` says how many it has."""

    graph: bytes
    weights: Mapping[str, ir.TensorProtocol]
    outputs: int

    @staticmethod
    def of(model: ir.Model) -> Apart:
        """The model as it stands now; later edits of it change nothing here."""
        values = model.graph.initializers
        weights = {n: tensor for n, tensor in large(model).items() if may_be_fed(values[n])}
        proto = outline(model, weights)
        within = []
        for tensor in proto.graph.initializer:
            if not is_apart(tensor):
                within.append(tensor)
                continue
            proto.graph.input.append(
                onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            )
        del proto.graph.initializer[:]
        proto.graph.initializer.extend(within)
        return Apart(proto.SerializeToString(), weights, len(model.graph.outputs))

    def model(self) -> ir.Model:
        """The model again, with its weights as constants."""
        model: ir.Model = ir.from_proto(onnx.ModelProto.FromString(self.graph))
        fed = {value.name: value for value in model.graph.inputs}
        for name, tensor in self.weights.items():
            value = fed[name]
            model.graph.inputs.remove(value)
            value.const_value = tensor
            model.graph.register_initializer(value)
        return model


def large(model: ir.Model) -> dict[str, ir.TensorProtocol]:
    """The large constants of the main graph, by name, and those that lie in a file."""
    return {
        name: tensor
        for name, value in model.graph.initializers.items()
        if (tensor := value.const_value) is not None
        and tensor.dtype != ir.DataType.STRING
        and (tensor.nbytes >= LARGE or isinstance(tensor, ir.ExternalTensor))
    }


def outline(model: ir.Model, weights: Mapping[str, ir.TensorProtocol]) -> onnx.ModelProto:
    """The model serialized without the bytes of these constants, which are references to no file."""
    with _referred(model, weights):
        return ir.to_proto(model)


def is_apart(tensor: onnx.TensorProto) -> bool:
    """Whether an initializer of an `outline` is such a reference."""
    return any(entry.value == _NOWHERE for entry in tensor.external_data)


def may_be_fed(value: ir.Value) -> bool:
    """Whether a constant is large and may be an input to a runtime: it is none yet and no output, and operators of
    ONNX read it."""
    tensor = value.const_value
    if tensor is None or tensor.dtype not in FED or tensor.nbytes < LARGE:
        return False
    if value.is_graph_input() or value.is_graph_output():
        return False
    return all(use.node.domain == "" for use in value.uses())


@contextmanager
def _referred(model: ir.Model, weights: Mapping[str, ir.TensorProtocol]) -> Iterator[None]:
    """The model with references in the place of these constants."""
    values = model.graph.initializers
    try:
        for name, tensor in weights.items():
            values[name].const_value = ir.ExternalTensor(
                _NOWHERE,
                0,
                tensor.nbytes,
                tensor.dtype,
                shape=ir.Shape(tensor.shape.numpy()),
                name=name,
                doc_string=tensor.doc_string,
            )
        yield
    finally:
        for name, tensor in weights.items():
            values[name].const_value = tensor
