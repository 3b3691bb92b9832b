"""Weights where layers read them: what nodes compute from constants is stored as what it comes to, and what a file
lists among its inputs only because it lists its weights there becomes constant.

Exporters without their optimizer write the weight of a linear layer as a Transpose, and the bias that a convolution
has not as an Expand of zero. Runtimes compute these once, when they load a model; whoever looks for a layer's weight
must find it too.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveInitializersFromInputsPass

from sparsecc.constants import add_constant
from sparsecc.shapes import evaluated

WEIGHTS: Mapping[str, tuple[int, ...]] = {
    "Conv": (1, 2),
    "ConvTranspose": (1, 2),
    "Gemm": (1, 2),
    "MatMul": (0, 1),
    "BatchNormalization": (1, 2, 3, 4),
    "InstanceNormalization": (1, 2),
    "LayerNormalization": (1, 2),
}
"""Operators and which of their operands may be weights."""
LARGEST = 1 << 16
"""Elements of what is computed here; a Transpose of a weight may have more."""
_FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16})
_MOVES = frozenset({"Cast", "Concat", "Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"})
_FILLS = frozenset({"ConstantOfShape", "Expand"})


def fix_weights(model: ir.Model) -> int:
    """Where callers could override most weights of layers, make constants of all defaults, in place.

    So do exporters that keep to the rule of IR version 3, which had all initializers among the inputs. Runtimes fold,
    fuse and pack only constants, and what is chosen and repaired by a default is right for that alone. Returns
    how many inputs went.
    """
    operands = [v for v in model.graph.initializers.values() if any(_is_weight_of(*use) for use in v.uses())]
    listed = [value for value in operands if value.is_graph_input()]
    if 2 * len(listed) <= len(operands):
        return 0
    before = len(model.graph.inputs)
    RemoveInitializersFromInputsPass()(model)
    return before - len(model.graph.inputs)


def store_operands(model: ir.Model) -> None:
    """Give layers constants for operands that are computed from constants alone, in place.

    A weight that only a Transpose reads is turned around; its axes are others then, and so is its name, with ".T".
    """
    for node in list(model.graph):
        if node.op_type == "Transpose" and not node.domain and _is_weight(node.outputs[0]):
            _turn(model.graph, node)
    known: dict[ir.Value, np.ndarray] = {}
    version, made = model.opset_imports.get("", 1), []
    for node in model.graph:
        result = None if node.domain else _result(node, known, version)
        if result is not None and result.size <= LARGEST:
            known[node.outputs[0]] = result
            made.append(node)
    for value, array in known.items():
        if _is_weight(value) and array.dtype.kind == "f":
            value.replace_all_uses_with(add_constant(model.graph, value.name or "operand", array))
    for node in reversed(made):
        _remove_idle(model.graph, node)


def _is_weight(value: ir.Value) -> bool:
    """Whether layers alone read a value, as their weights."""
    uses = value.uses()
    return bool(uses) and not value.is_graph_output() and all(_is_weight_of(*use) for use in uses)


def _is_weight_of(node: ir.Node, operand: int) -> bool:
    return not node.domain and operand in WEIGHTS.get(node.op_type, ())


def _turn(graph: ir.Graph, node: ir.Node) -> None:
    """Store a weight as its only reader turns it."""
    weight = node.inputs[0]
    if weight is None or not weight.is_initializer() or weight.is_graph_input() or weight.is_graph_output():
        return
    tensor = weight.const_value
    if tensor is None or len(weight.uses()) > 1 or tensor.dtype not in _FLOATS:
        return
    order = node.attributes.get_ints("perm") or list(reversed(range(len(tensor.shape))))
    if sorted(order) != list(range(len(tensor.shape))):
        return
    turned = add_constant(graph, f"{weight.name}.T", tensor.numpy().transpose(order))
    node.outputs[0].replace_all_uses_with(turned)
    _remove_idle(graph, node)


def _result(node: ir.Node, known: Mapping[ir.Value, np.ndarray], version: int) -> np.ndarray | None:
    """What a node always gives, where that is known; never more than it takes to say so."""
    if node.op_type == "Shape":
        return _shape(node)
    if node.op_type == "CastLike":
        array, like = _array(node.inputs[0], known), node.inputs[1]
        dtype = like.dtype if like is not None else None
        return array.astype(dtype.numpy()) if array is not None and dtype in _FLOATS and dtype else None
    if node.op_type not in _MOVES | _FILLS or len(node.outputs) != 1:
        return None
    arrays = [None if value is None else _array(value, known) for value in node.inputs]
    if any(array is None for array, value in zip(arrays, node.inputs, strict=True) if value is not None):
        return None
    target = arrays[-1] if node.op_type in _FILLS else None
    if target is not None and np.prod(target, dtype=float) > LARGEST:
        return None
    return next(iter(evaluated(node, arrays, version)), None)


def _shape(node: ir.Node) -> np.ndarray | None:
    """The shape of a constant."""
    tensor = node.inputs[0].const_value if node.inputs[0] is not None else None
    if tensor is None or node.inputs[0] is None or node.inputs[0].is_graph_input():
        return None
    sizes = np.array([int(d) for d in tensor.shape], dtype=np.int64)  # type: ignore[arg-type]
    return sizes[node.attributes.get_int("start", 0) : node.attributes.get_int("end", len(sizes))]


def _array(value: ir.Value | None, known: Mapping[ir.Value, np.ndarray]) -> np.ndarray | None:
    """A small constant; None for a matrix that others read too, which stays one."""
    if value is None or value.is_graph_input():
        return None
    tensor = value.const_value
    if tensor is not None and value.is_initializer():
        is_tied = len(tensor.shape) > 1 and len(value.uses()) > 1
        return tensor.numpy() if tensor.size <= LARGEST and not is_tied else None
    return known.get(value)


def _remove_idle(graph: ir.Graph, node: ir.Node) -> None:
    """Remove a node whose result nobody reads any more, and the constants that only it read."""
    if any(value.uses() or value.is_graph_output() for value in node.outputs):
        return
    inputs = [value for value in node.inputs if value is not None]
    graph.remove(node, safe=True)
    for value in inputs:
        idle = value.is_initializer() and not value.uses()
        if idle and not value.is_graph_input() and not value.is_graph_output():
            graph.initializers.pop(value.name or "", None)
