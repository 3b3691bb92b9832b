"""Weights where layers read them: what nodes compute from constants is stored as what it comes to, and what a file
lists among its inputs only because it lists its weights there becomes constant.

Exporters without their optimizer write the weight of a linear layer as a Transpose, and the bias that a convolution
has not as an Expand of zero; modules with weight standardisation, weight or spectral norm compute theirs in the
graph. Runtimes do this once, when they load a model; whoever looks for a layer's weight must find it too.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveInitializersFromInputsPass

from sparsecc.ir.constants import add_constant
from sparsecc.ir.file_names import remember
from sparsecc.rules import Trait, traits_of, weights_of
from sparsecc.shapes.infer import evaluated

LARGEST = 1 << 16
"""Elements of what is moved or filled here; a Transpose of a weight, and what is computed of one, may have more."""
MOST_NODES = 64
"""What computes one weight: more is no norm of a weight, and would take long where many share it."""
_FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16})
_FILLS = frozenset({"ConstantOfShape", "Expand"})
_BROADCASTS = frozenset({"Add", "Clip", "Div", "LayerNormalization", "Max", "Min", "Mul", "Pow", "Sub"})
_COMPUTES = _BROADCASTS | frozenset(
    """Abs BatchNormalization Exp LpNormalization MatMul Neg Reciprocal ReduceL1 ReduceL2 ReduceMax ReduceMean
    ReduceMin ReduceSum ReduceSumSquare Sigmoid Softplus Sqrt Tanh""".split()
)
_FOLLOWED = _FILLS | _COMPUTES | {"Concat", "Slice", "Shape"}
"""What is computed here beside what only reshapes or reorders a constant: exporters write weights so, and `_fits`
knows how large each result is."""


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
    What an Identity makes of integers is read from where it comes: runtimes lack kernels for small ones.
    """
    for node in list(model.graph):
        if node.op_type == "Identity" and not node.domain:
            _skip(model.graph, node)
        if node.op_type == "Transpose" and not node.domain and _is_weight(node.outputs[0]):
            _turn(model.graph, node)
    version = model.opset_imports.get("", 1)
    for value in [value for value in _constants(model.graph) if _is_weight(value)]:
        nodes = _behind(value)
        array = _result(value, nodes, version) if nodes else None
        if array is not None and array.dtype.kind == "f":
            stored = add_constant(model.graph, value.name or "operand", array)
            remember(stored, _constants_behind(nodes))
            value.replace_all_uses_with(stored)
            for node in reversed(nodes):
                _remove_idle(model.graph, node)


def _skip(graph: ir.Graph, node: ir.Node) -> None:
    """Let the readers of an Identity of constant integers read these."""
    source, copy = node.inputs[0], node.outputs[0]
    if source is None or not source.is_initializer() or source.is_graph_input() or copy.is_graph_output():
        return
    if source.const_value is not None and source.const_value.dtype not in _FLOATS:
        copy.replace_all_uses_with(source)
        _remove_idle(graph, node)


def _is_weight(value: ir.Value) -> bool:
    """Whether layers alone read a value, as their weights."""
    uses = value.uses()
    return bool(uses) and not value.is_graph_output() and all(_is_weight_of(*use) for use in uses)


def _is_weight_of(node: ir.Node, operand: int) -> bool:
    return operand in weights_of(node)


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
    remember(turned, [weight.name or ""], order)
    node.outputs[0].replace_all_uses_with(turned)
    _remove_idle(graph, node)


def _constants(graph: ir.Graph) -> dict[ir.Value, None]:
    """What nodes give that read constants alone."""
    found: dict[ir.Value, None] = {}
    for node in graph:
        if node.domain or not (node.op_type in _FOLLOWED or traits_of(node) & Trait.KEEPS_SIZE):
            continue
        if all(v in found or (v.is_initializer() and not v.is_graph_input()) for v in _read(node)):
            found.update(dict.fromkeys(node.outputs))
    return found


def _behind(value: ir.Value) -> list[ir.Node]:
    """The nodes that compute a value of constants, in order; none where they are too many."""
    found: dict[ir.Node, None] = {}
    pending = [(value.producer(), False)]
    while pending:
        node, done = pending.pop()
        if node is None or node in found:
            continue
        if done:
            found[node] = None
        elif len(pending) > MOST_NODES or len(found) == MOST_NODES:
            return []
        else:
            pending += [(node, True), *((operand.producer(), False) for operand in _read(node))]
    return list(found)


def _constants_behind(nodes: Sequence[ir.Node]) -> list[str]:
    """The names of the constants that these nodes read, each once."""
    read = (value for node in nodes for value in _read(node) if value.const_value is not None)
    return list(dict.fromkeys(value.name or "" for value in read))


def _read(node: ir.Node) -> list[ir.Value]:
    """The operands whose numbers a node reads: of some only the shape or the type."""
    count = {"Shape": 0, "CastLike": 1}.get(node.op_type, len(node.inputs))
    return [value for value in node.inputs[:count] if value is not None]


def _result(value: ir.Value, nodes: Sequence[ir.Node], version: int) -> np.ndarray | None:
    """What these nodes compute of constants; None where they cannot, where it takes more than it took to say so, and
    of a matrix that others read too, which stays one."""
    given = {v: v.const_value for node in nodes for v in _read(node) if v.const_value is not None}
    fills = any(node.op_type in _FILLS for node in nodes)
    most = max([LARGEST, *(tensor.size for tensor in given.values() if not fills)])
    inside = frozenset(nodes)

    def is_refused(array: np.ndarray | ir.TensorProtocol, v: ir.Value) -> bool:
        is_tied = len(array.shape) > 1 and v is not value and any(use.node not in inside for use in v.uses())
        return is_tied or array.size > most

    if any(is_refused(tensor, v) for v, tensor in given.items()):
        return None
    known = {v: tensor.numpy() for v, tensor in given.items()}
    for node in nodes:
        arrays = [known.get(v) if v is not None else None for v in node.inputs]
        results = _run(node, arrays, version) if _fits(node, arrays, most) else ()
        pairs = list(zip(node.outputs, results, strict=False))
        if not pairs or any(is_refused(array, v) for v, array in pairs):
            return None
        known.update(pairs)
    return known[value]


def _fits(node: ir.Node, arrays: Sequence[np.ndarray | None], most: int) -> bool:
    """Whether a node surely gives no more elements, before it is run: small operands may make something that fits
    nowhere."""
    shapes = [array.shape for array in arrays if array is not None]
    if node.op_type == "Concat":
        return sum(math.prod(shape) for shape in shapes) <= most
    if node.op_type in _FILLS and arrays[-1] is not None:
        shapes[-1] = tuple(arrays[-1].ravel().tolist())
    elif node.op_type == "MatMul" and len(shapes) == 2:
        (*first, _), (*second, last) = shapes[0] or (1,), shapes[1] or (1,)
        shapes = [(*first, 1), (*second[:-1], 1, last)]
    elif node.op_type == "BatchNormalization" and shapes:
        behind = (1,) * max(len(shapes[0]) - 2, 0)
        shapes = [shapes[0], *((math.prod(shape), *behind) for shape in shapes[1:])]
    elif node.op_type not in _BROADCASTS:
        shapes = shapes[:1]
    aligned = itertools.zip_longest(*(reversed(shape) for shape in shapes), fillvalue=1)
    elements: int = math.prod(max(sizes) for sizes in aligned)
    return elements <= most


def _run(node: ir.Node, arrays: Sequence[np.ndarray | None], version: int) -> Sequence[np.ndarray]:
    """The outputs of a node; nothing where they are unknown."""
    if node.op_type == "Shape":
        return _shape(node)
    if node.op_type == "CastLike":
        dtype = node.inputs[1].dtype if node.inputs[1] is not None else None
        return (
            [arrays[0].astype(dtype.numpy())] if arrays[0] is not None and dtype in _FLOATS and dtype else []
        )
    return evaluated(node, arrays, version)


def _shape(node: ir.Node) -> Sequence[np.ndarray]:
    """The shape of a constant."""
    tensor = node.inputs[0].const_value if node.inputs[0] is not None else None
    if tensor is None or node.inputs[0] is None or node.inputs[0].is_graph_input():
        return []
    sizes = np.array([int(d) for d in tensor.shape], dtype=np.int64)  # type: ignore[arg-type]
    return [sizes[node.attributes.get_int("start", 0) : node.attributes.get_int("end", len(sizes))]]


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
