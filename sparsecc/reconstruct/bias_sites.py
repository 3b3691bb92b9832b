"""Where a layer's result is compared with the dense model's, and where its bias lies."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from sparsecc.graph.linear_layers import LinearLayer, added_bias, sum_behind
from sparsecc.ir.constants import add_constant


@dataclass(frozen=True)
class Outlet:
    """The way of a consumer's result: past the addition of a bias (`adder`, for MatMul), maybe into a sum.

    `own` is the result with its bias; `total` is its sum with the activation `other`, where there is one.
    """

    consumer: LinearLayer
    adder: ir.Node | None
    own: ir.Value
    total: ir.Value | None
    other: ir.Value | None

    @property
    def has_bias(self) -> bool:
        """Whether a bias can be set."""
        return self.consumer.node.op_type != "MatMul" or self.adder is not None

    def bias(self, outputs: int) -> np.ndarray | None:
        """The present bias, float64 (outputs,); None where there is none."""
        value = self._bias_value()
        if value is None:
            return np.zeros(outputs) if self.has_bias else None
        assert value.const_value is not None
        array = value.const_value.numpy().astype(np.float64).ravel()
        return np.array(np.broadcast_to(array, (outputs,)))

    def store_bias(self, bias: np.ndarray) -> str:
        """Set the bias; one that others share is replaced. Returns the initializer's name."""
        value = self._bias_value()
        weight = self.consumer.weight.const_value
        assert weight is not None
        array = bias.astype(weight.dtype.numpy())
        is_own = value is not None and len(value.uses()) == 1
        present = value.const_value if value is not None and is_own else None
        if value is not None and present is not None and present.size == bias.size:
            shape = tuple(int(d) for d in present.shape)  # type: ignore[arg-type]
            value.const_value = ir.Tensor(array.reshape(shape), name=value.name)
            return value.name or ""
        made = _constant(self.adder or self.consumer.node, array)
        self._read(made)
        return made.name or ""

    def _read(self, bias: ir.Value) -> None:
        """Let another constant be the bias."""
        if self.adder is not None:
            present = self._bias_value()
            assert present is not None
            self.adder.replace_input_with(list(self.adder.inputs).index(present), bias)
            return
        node = self.consumer.node
        if len(node.inputs) < 3:
            node.resize_inputs(3)
        node.replace_input_with(2, bias)

    def _bias_value(self) -> ir.Value | None:
        if self.adder is not None:
            return next(v for v in self.adder.inputs if v is not None and v.const_value is not None)
        inputs = self.consumer.node.inputs
        return inputs[2] if len(inputs) > 2 and self.consumer.node.op_type != "MatMul" else None


def outlet_of(consumer: LinearLayer) -> Outlet | str:
    """Where a consumer's result goes; a reason where its bias is no constant."""
    node = consumer.node
    own, adder = node.outputs[0], None
    if len(node.inputs) > 2 and node.inputs[2] is not None and node.inputs[2].const_value is None:
        return "its bias is computed by other nodes"
    biased = added_bias(node, consumer.shape[consumer.out_axis]) if node.op_type == "MatMul" else None
    if biased is not None:
        adder = biased[0]
        own = adder.outputs[0]
    following = sum_behind(own)
    if following is None or following[1].const_value is not None:
        return Outlet(consumer, adder, own, None, None)
    return Outlet(consumer, adder, own, following[0].outputs[0], following[1])


def feeds_norm(outlet: Outlet) -> bool:
    """Whether a batch norm alone reads a consumer's result: its offset then takes a bias up."""
    uses = list(outlet.own.uses())
    return len(uses) == 1 and uses[0].node.op_type == "BatchNormalization" and uses[0].idx == 0


def _constant(node: ir.Node, array: np.ndarray) -> ir.Value:
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    return add_constant(graph, f"{node.name}.bias", array)
