"""Where a model multiplies activations by constant weights: what quantization and patterns work on."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from sparsecc.remarks import Remark
from sparsecc.rules import Trait, traits_of

WEIGHTED = ("Conv", "Gemm", "MatMul")


@dataclass(eq=False)
class Site:
    """One Conv, Gemm or MatMul with a constant float weight.

    The weight is (out, in/group, *kernel) for Conv, (in, out) for MatMul and for Gemm unless `transposed`,
    then (out, in). `out_axis` and `in_axis` name these axes of the weight.
    """

    node: ir.Node
    data: ir.Value
    weight: ir.Value
    bias: ir.Value | None
    out_axis: int
    in_axis: int
    group: int = 1

    @property
    def name(self) -> str:
        return self.node.name or ""

    @property
    def op_type(self) -> str:
        return self.node.op_type

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weight."""
        assert self.weight.const_value is not None
        return tuple(int(size) for size in self.weight.const_value.shape.numpy())

    @property
    def dtype(self) -> ir.DataType:
        """Of the weight."""
        assert self.weight.const_value is not None
        return self.weight.const_value.dtype

    def refresh(self) -> None:
        """Look up weight and bias again, after operands of the node were replaced."""
        weight = self.node.inputs[1]
        assert weight is not None
        self.weight = weight
        self.bias = self.node.inputs[2] if len(self.node.inputs) > 2 else None

    def array(self) -> np.ndarray:
        """The weight as float32, in its own layout."""
        return constant_array(self.weight).astype(np.float32, copy=False)

    def matrix(self, weight: np.ndarray) -> np.ndarray:
        """A weight as (out, reduction); for Conv the reduction is (*kernel, in/group), channels fastest."""
        if self.op_type == "Conv":
            return np.moveaxis(weight, 1, -1).reshape(weight.shape[0], -1)
        return weight if self.out_axis == 0 else weight.T

    def from_matrix(self, matrix: np.ndarray) -> np.ndarray:
        """The inverse of `matrix`: back to the layout of the weight."""
        if self.op_type == "Conv":
            out, channels, *kernel = self.shape
            return np.ascontiguousarray(np.moveaxis(matrix.reshape(out, *kernel, channels), -1, 1))
        return np.ascontiguousarray(matrix if self.out_axis == 0 else matrix.T)


def constant_array(value: ir.Value) -> np.ndarray:
    """The numbers of a constant value. ValueError when it has none."""
    if value.const_value is None:
        raise ValueError(f"value '{value.name}' is not constant")
    return value.const_value.numpy()


SINGLE = (ir.DataType.FLOAT,)
SINGLE_OR_HALF = (ir.DataType.FLOAT, ir.DataType.FLOAT16)


def is_float_constant(value: ir.Value | None, types: Collection[ir.DataType] = SINGLE) -> bool:
    """Whether a value is an initializer of one of these types that no caller can override."""
    return (
        value is not None
        and value.const_value is not None
        and value.is_initializer()
        and not value.is_graph_input()
        and value.const_value.dtype in types
    )


def int_attribute(node: ir.Node, name: str, default: int) -> int:
    """An integer attribute, or `default` when the node does not have it."""
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_int()


def ints_attribute(node: ir.Node, name: str) -> list[int] | None:
    """A list of integers, or None when the node does not have it."""
    attribute = node.attributes.get(name)
    return None if attribute is None else [int(v) for v in attribute.as_ints()]


def float_attribute(node: ir.Node, name: str, default: float) -> float:
    """A float attribute, or `default` when the node does not have it."""
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_float()


def find_sites(model: ir.Model, types: Collection[ir.DataType] = SINGLE) -> tuple[list[Site], list[Remark]]:
    """All sites of the main graph whose weights have one of these types, in its order, and the weighted nodes
    that are none, with the reason."""
    sites: list[Site] = []
    skipped: list[Remark] = []
    for node in model.graph:
        if node.op_type not in WEIGHTED or node.domain not in ("", "ai.onnx"):
            continue
        reason = _why_not(node, types)
        if reason:
            skipped.append(Remark(node.name or "", reason))
        else:
            sites.append(_site(node))
    return sites, skipped


def _why_not(node: ir.Node, types: Collection[ir.DataType]) -> str:
    weight = node.inputs[1]
    if weight is None or weight.const_value is None:
        producer = None if weight is None else weight.producer()
        if producer is not None and traits_of(producer) & Trait.INTEGER:
            return "already quantized"
        source = producer.inputs[0] if producer is not None and producer.op_type == "Transpose" else None
        if source is not None and is_float_constant(source, types):
            return f"its weight is '{source.name}' turned, which other nodes read too"
        return "both operands are activations"
    if not is_float_constant(weight, types):
        known = " or ".join(dtype.numpy().name for dtype in types)
        return f"its weight '{weight.name}' is not a fixed {known} initializer"
    if node.inputs[0] is None or node.inputs[0].const_value is not None:
        return "its data operand is constant"
    rank = len(weight.const_value.shape)
    if node.op_type != "Conv" and rank != 2:
        return f"its weight has {rank} axes, not 2"
    if node.op_type == "Gemm":
        return _why_not_gemm(node)
    return ""


def _why_not_gemm(node: ir.Node) -> str:
    if int_attribute(node, "transA", 0):
        return "Gemm with transA"
    if float_attribute(node, "alpha", 1.0) != 1.0 or float_attribute(node, "beta", 1.0) != 1.0:
        return "Gemm with alpha or beta other than 1"
    return ""


def _site(node: ir.Node) -> Site:
    data, weight = node.inputs[0], node.inputs[1]
    assert data is not None
    assert weight is not None
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if node.op_type == "Conv":
        return Site(node, data, weight, bias, 0, 1, int_attribute(node, "group", 1))
    transposed = node.op_type == "Gemm" and int_attribute(node, "transB", 0) == 1
    return Site(node, data, weight, bias, 0 if transposed else 1, 1 if transposed else 0)


def trailing_bias(node: ir.Node) -> tuple[ir.Value | None, ir.Value]:
    """The constant vector that alone is added to a MatMul's output, and the value that holds the sum."""
    output = node.outputs[0]
    weight = node.inputs[1]
    consumers = output.consumers()
    if len(consumers) != 1 or output.is_graph_output() or consumers[0].op_type != "Add" or weight is None:
        return None, output
    others = [value for value in consumers[0].inputs if value is not None and value is not output]
    if len(others) != 1 or others[0].const_value is None or others[0].is_graph_input():
        return None, output
    columns = weight.shape[-1] if weight.shape is not None else None
    if constant_array(others[0]).shape != (columns,):
        return None, output
    return others[0], consumers[0].outputs[0]
