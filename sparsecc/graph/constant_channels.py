"""Channels that have one value whatever the input is: found in the weights, without data.

A layer whose weights are zero in a row gives its bias there, a batch norm whose scale is zero its offset, and what
works slot by slot on constants gives constants. A convolution that pads sees zeros beside them: no constant but zero
comes through it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from sparsecc.axes.algebra import Axis, factors_of, resolve
from sparsecc.axes.sizes import at, is_static
from sparsecc.graph.analysis import Analysis
from sparsecc.graph.linear_layers import FLOATS, LinearLayer, is_float_constant, layer_of
from sparsecc.rules import Trait, traits_of
from sparsecc.shapes.infer import evaluated

Known = tuple[int, np.ndarray]
"""(axis, the value of each of its slots: float64, NaN where it depends on the input)."""

_POOLS = frozenset({"MaxPool", "GlobalMaxPool", "GlobalAveragePool"})
_MEANS = frozenset({"ReduceMean", "ReduceMax", "ReduceMin"})


def constant_channels(analysis: Analysis) -> dict[ir.Value, Known]:
    """The values of the main graph with channels that are the same on every input."""
    finder = _Finder(analysis)
    for node in analysis.model.graph:
        finder.visit(node)
    return finder.known


def is_padded(layer: LinearLayer) -> bool:
    """Whether a convolution sees zeros around its input."""
    attributes = layer.node.attributes
    pads = attributes.get_ints("pads") or ()
    return layer.is_conv and (attributes.get_string("auto_pad", "NOTSET").startswith("SAME") or any(pads))


def bias_of(layer: LinearLayer) -> np.ndarray | None:
    """The bias in the layer's node, float64 (outputs,); None where other nodes compute it."""
    outputs = layer.shape[layer.out_axis]
    if layer.bias is None or layer.op_type == "MatMul":
        return np.zeros(outputs)
    tensor = layer.bias.const_value
    if tensor is None or not is_float_constant(layer.bias, FLOATS):
        return None
    return np.array(np.broadcast_to(tensor.numpy().astype(np.float64).ravel(), (outputs,)))


class _Finder:
    """Walks the main graph once, in order."""

    def __init__(self, analysis: Analysis) -> None:
        self.analysis = analysis
        self.known: dict[ir.Value, Known] = {}

    def visit(self, node: ir.Node) -> None:
        """Note what is constant of a node's first output."""
        if not node.outputs or node in self.analysis.record.unfollowed:
            return
        found = self._found(node)
        if found is not None and np.isfinite(found[1]).any():
            values = np.where(np.isfinite(found[1]), found[1], np.nan)
            self.known[node.outputs[0]] = (found[0], values)

    def _found(self, node: ir.Node) -> Known | None:
        layer = layer_of(node, FLOATS)
        if isinstance(layer, LinearLayer):
            return self._product(layer)
        traits, data = traits_of(node), node.inputs[0] if node.inputs else None
        if node.op_type == "BatchNormalization":
            return self._norm(node)
        if node.op_type == "Concat":
            return self._joined(node)
        if Trait.SLOTWISE in traits:
            return self._slotwise(node)
        known = self.known.get(data) if data is not None else None
        if known is None or data is None:
            return None
        if node.op_type in _POOLS:
            return known
        if node.op_type in _MEANS or Trait.KEEPS_SIZE in traits:
            return self._moved(data, known, node.outputs[0])
        return None

    def _product(self, layer: LinearLayer) -> Known | None:
        """Outputs whose weights are zero wherever an input is not known."""
        bias = bias_of(layer)
        if bias is None:
            return None
        axis = 1 if layer.is_conv else self._rank(layer.node.outputs[0]) - 1
        weight = layer.matrices()  # (groups, outputs, columns)
        groups, _, columns = layer.sizes
        inputs = np.full((groups, 1, columns), np.nan)
        known = self.known.get(layer.data)
        if known is not None and known[0] == (1 if layer.is_conv else self._rank(layer.data) - 1):
            values = np.where(known[1] == 0, 0.0, np.nan) if is_padded(layer) else known[1]
            inputs = np.repeat(values, layer.cells).reshape(groups, 1, columns)
        with np.errstate(all="ignore"):
            parts = np.where(weight == 0, 0.0, weight * inputs)
        return axis, parts.sum(axis=2).ravel() + bias

    def _norm(self, node: ir.Node) -> Known | None:
        operands = list(node.inputs)
        if node.attributes.get_int("training_mode", 0) or len(operands) < 5:
            return None
        tensors = [
            v.const_value if is_float_constant(v, FLOATS) and v is not None else None for v in operands[1:5]
        ]
        if any(t is None or len(t.shape) != 1 for t in tensors):
            return None
        scale, bias, mean, variance = (t.numpy().astype(np.float64) for t in tensors if t is not None)
        data = operands[0]
        known = self.known.get(data) if data is not None else None
        values = known[1] if known is not None and known[0] == 1 else np.full(len(scale), np.nan)
        epsilon = node.attributes.get_float("epsilon", 1e-5)
        with np.errstate(all="ignore"):
            result = scale * (values - mean) / np.sqrt(variance + epsilon) + bias
        return 1, np.where(scale == 0, bias, result)

    def _joined(self, node: ir.Node) -> Known | None:
        """Constant parts side by side."""
        rank = self._rank(node.outputs[0])
        axis = node.attributes.get_int("axis", 0) % max(rank, 1)
        parts = []
        for value in node.inputs:
            axes = self.analysis.record.axes.get(value, []) if value is not None else []
            if len(axes) != rank or not is_static(axes[axis].size) or value is None:
                return None
            found = self.known.get(value)
            unknown = np.full(at(axes[axis].size, 0), np.nan)
            parts.append(found[1] if found is not None and found[0] == axis else unknown)
        return axis, np.concatenate(parts) if parts else np.zeros(0)

    def _slotwise(self, node: ir.Node) -> Known | None:
        """The operator itself on the constants; a product with zero is zero whatever the other factor is."""
        rank = self._rank(node.outputs[0])
        places = {
            (self.known[v][0] + rank - self._rank(v)): len(self.known[v][1])
            for v in node.inputs
            if v is not None and v in self.known
        }
        if len(places) > 1:
            return None
        if not places:
            places = self._zero_factors(node, rank)
        for axis, size in places.items():
            columns = [self._column(v, axis, size, rank) if v is not None else None for v in node.inputs]
            dtypes = [
                v.dtype.numpy() if v is not None and v.dtype is not None else np.float32 for v in node.inputs
            ]
            unknown = np.zeros(size, dtype=bool)
            arrays: list[np.ndarray | None] = []
            for column, dtype in zip(columns, dtypes, strict=True):
                if column is None:
                    arrays.append(None)
                    continue
                unknown |= np.isnan(column)
                arrays.append(
                    np.nan_to_num(column).astype(dtype).reshape([-1 if i == axis else 1 for i in range(rank)])
                )
            results = evaluated(node, arrays, self.analysis.version)
            if not results or results[0].dtype.kind != "f" or results[0].size != size:
                return None
            result = np.where(unknown, np.nan, results[0].astype(np.float64).ravel())
            if node.op_type == "Mul":
                result[np.any([c == 0 for c in columns if c is not None], axis=0)] = 0
            return axis, result
        return None

    def _zero_factors(self, node: ir.Node, rank: int) -> dict[int, int]:
        """Where a constant factor (a mask, a layer's scale) has zeros."""
        for value in node.inputs if node.op_type == "Mul" else ():
            tensor = value.const_value if value is not None and is_float_constant(value, FLOATS) else None
            if tensor is not None and sum(int(d) > 1 for d in tensor.shape) == 1 and not tensor.numpy().all():  # type: ignore[arg-type]
                own = next(i for i, d in enumerate(tensor.shape) if int(d) > 1)  # type: ignore[arg-type]
                return {own + rank - len(tensor.shape): int(tensor.shape[own])}  # type: ignore[arg-type]
        return {}

    def _column(self, value: ir.Value, axis: int, size: int, rank: int) -> np.ndarray:
        """What an operand has in every slot of an axis of the result; NaN where it is not one number."""
        if value in self.known:
            return self.known[value][1]
        unknown = np.full(size, np.nan)
        tensor = value.const_value if is_float_constant(value, FLOATS) else None
        if tensor is None:
            return unknown
        array = tensor.numpy().astype(np.float64)
        array = np.broadcast_to(array, (1,) * (rank - array.ndim) + array.shape)
        if array.ndim != rank or (rank and array.shape[axis] not in (1, size)):
            return unknown
        flat = np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1)
        return np.array(
            np.broadcast_to(np.where((flat == flat[:, :1]).all(axis=1), flat[:, 0], np.nan), (size,))
        )

    def _moved(self, data: ir.Value, known: Known, result: ir.Value) -> Known | None:
        """The same axis somewhere else in the result, alone or as the outer factor of a flattened one."""
        record = self.analysis.record
        if data not in record.axes or result not in record.axes:
            return None
        wanted = factors_of(record.axes[data][known[0]])
        for position, axis in enumerate(record.axes[result]):
            inner = _within(factors_of(axis), wanted)
            if inner is not None:
                return position, np.repeat(known[1], inner)
        return None

    def _rank(self, value: ir.Value) -> int:
        shape = self.analysis.shapes.of(value)
        return 0 if shape is None else len(shape)


def _within(factors: Sequence[Axis], outer: Sequence[Axis]) -> int | None:
    """How many slots of a product belong to each of its outer factors; None where these are not its outer ones."""
    if len(factors) < len(outer) or any(
        resolve(a) is not resolve(b) for a, b in zip(factors, outer, strict=False)
    ):
        return None
    inner = 1
    for factor in factors[len(outer) :]:
        if not isinstance(factor.size, int):
            return None
        inner *= factor.size
    return inner
