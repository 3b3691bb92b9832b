"""Which nodes and values become integers, before any scale is known: one decision per style of runtime."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

import onnx_ir as ir

from sparsecc.graph.linear_layers import LinearLayer
from sparsecc.passes.quantize.body_ranges import entered_nodes
from sparsecc.passes.weights.linear_layers import constant_array
from sparsecc.remarks import Remark

FUSED_ACTIVATIONS = frozenset({"Relu", "Clip"})
"""ONNX Runtime folds these into the integer kernel before them when the quantized range implies them."""

INTEGER_FOLLOWERS = frozenset({"Add", "Concat", "AveragePool", "GlobalAveragePool"})
"""Operators with an integer kernel of their own that are worth it between integer neighbours."""

SAME_SCALE = frozenset(
    {"MaxPool", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Split", "DepthToSpace"}
)
"""Operators that only move numbers: input and output share one scale, and the kernel runs on integers."""

QUANTIZED_OUTPUTS = frozenset({"Conv"})
"""Sites whose integer kernel needs an integer result. Gemm and MatMul give float for less error and time, but for a
Gemm before a Relu or Clip: ONNX Runtime finds its integers only where these are followed by integers."""

NO_DILATIONS = (
    "ONNX Runtime's integer kernel, which it would make of the pool between integers, knows no dilations"
)

UNTOLD = "the ranges that the model came with leave it out, and no integer kernel reads it: left in float as it came"

MIN_TENSORRT_CHANNELS = 16


@dataclass
class Decision:
    """What to quantize.

    `values` are activations quantized by their own range; `aliases` share the scale of another value. `full`
    are those whose integer form replaces the float one for every consumer, because their producer is integer.
    `products` multiply two activations, of which `rights` are the second operands: signed and symmetric. `stored` run
    in float on weights of 8 bits.
    """

    layers: list[LinearLayer] = field(default_factory=list)
    followers: list[ir.Node] = field(default_factory=list)
    products: list[ir.Node] = field(default_factory=list)
    rights: dict[str, ir.Value] = field(default_factory=dict)
    stored: list[ir.Node] = field(default_factory=list)
    values: dict[str, ir.Value] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    full: set[str] = field(default_factory=set)
    remarks: list[Remark] = field(default_factory=list)

    def holds(self, value: ir.Value | None) -> bool:
        """Whether a value has a scale."""
        return value is not None and (value.name in self.values or value.name in self.aliases)

    def leave_out(self, unseen: set[str]) -> None:
        """Add residual operands in float whose range nobody saw: where a convolution stays in float, the other operand
        of its sum would have been the residual one."""
        read = {layer.data.name for layer in self.layers}
        for name in unseen - read:
            self.followers = [
                node for node in self.followers if all(v is None or v.name != name for v in node.inputs)
            ]
            del self.values[name]

    @property
    def names(self) -> list[str]:
        """The nodes that get 8 bits: layers, products, and those of stored weights."""
        others = (node.name or "" for node in (*self.products, *self.stored))
        return [*(layer.name for layer in self.layers), *others]

    def root(self, name: str) -> str:
        """The value whose range gives this value's scale."""
        while name in self.aliases:
            name = self.aliases[name]
        return name


def decide_onnxruntime(
    model: ir.Model,
    layers: Iterable[LinearLayer],
    exclude: Collection[str],
    outputs: Collection[str] = QUANTIZED_OUTPUTS,
    products: Collection[str] = (),
    told: Collection[str] = (),
    *,
    in_bodies: bool = False,
    swishes: bool = False,
) -> Decision:
    """Integer chains for ONNX Runtime: inputs and outputs of weighted nodes, and what stays between; of the products
    of two activations those named. `told` are the values that the model came with ranges of, where it has any.
    `in_bodies` goes into the bodies of If, Loop and Scan; a chain ends where one begins. `swishes` takes
    x * sigmoid(x) between layers, too."""
    decision = Decision()
    chosen = {}
    for layer in layers:
        reason = "left in float" if layer.name in exclude else _why_not_onnxruntime(layer)
        if reason:
            decision.remarks.append(Remark(layer.name, reason))
        else:
            chosen[layer.node] = layer
    model.graph.sort()
    for node in entered_nodes(model.graph) if in_bodies else model.graph:
        if node in chosen:
            _take_layer(decision, chosen[node], outputs)
        elif node.domain in ("", "ai.onnx") and node.name not in exclude:
            if node.name in products:
                _take_product(decision, node)
            elif swishes and node.op_type == "Sigmoid":
                _take_swish(decision, node, chosen, exclude, told)
            else:
                _follow(decision, node, chosen, told)
    return decision


def _take_product(decision: Decision, node: ir.Node) -> None:
    left, right = node.inputs
    assert left is not None
    assert right is not None
    decision.products.append(node)
    if not decision.holds(left):
        decision.values[left.name or ""] = left
    decision.rights[right.name or ""] = right


def _take_layer(decision: Decision, layer: LinearLayer, outputs: Collection[str]) -> None:
    decision.layers.append(layer)
    if not decision.holds(layer.data):
        decision.values[layer.data.name or ""] = layer.data
    result = fused_result(layer.node)
    is_activated_gemm = layer.op_type == "Gemm" and result is not layer.node.outputs[0]
    if layer.op_type in outputs or is_activated_gemm:
        decision.values[result.name or ""] = result
        decision.full.add(result.name or "")


def _follow(decision: Decision, node: ir.Node, chosen: Collection[ir.Node], told: Collection[str]) -> None:
    if node.op_type in INTEGER_FOLLOWERS:
        if not node.inputs or not all(decision.holds(value) for value in node.inputs):
            return
        if reason := _why_not_follower(node, chosen, told):
            decision.remarks.append(Remark(node.name or "", reason))
            return
        result = fused_result(node)
        decision.followers.append(node)
        decision.values[result.name or ""] = result
        decision.full.add(result.name or "")
    elif node.op_type in SAME_SCALE and decision.holds(node.inputs[0]) and len(node.outputs) >= 1:
        source = node.inputs[0]
        outputs = node.outputs if node.op_type == "Split" else node.outputs[:1]
        if source is None or any(output.is_graph_output() for output in outputs):
            return
        decision.followers.append(node)
        for output in outputs:
            decision.aliases[output.name or ""] = source.name or ""
            decision.full.add(output.name or "")


def _take_swish(
    decision: Decision,
    sigmoid: ir.Node,
    chosen: Collection[ir.Node],
    exclude: Collection[str],
    told: Collection[str],
) -> None:
    """x * sigmoid(x) between integers: ONNX Runtime looks both up or multiplies bytes, where float kernels would
    convert there and back around an exponential of each number."""
    x, gate = sigmoid.inputs[0], sigmoid.outputs[0]
    readers = gate.consumers()
    if x is None or x.name not in decision.full or len(readers) != 1 or gate.is_graph_output():
        return
    (product,) = readers
    is_swish = product.op_type == "Mul" and {*product.inputs} == {x, gate} and product.name not in exclude
    result = product.outputs[0]
    is_told = not told or {gate.name, result.name} <= {*told}
    if not is_swish or product.graph is not sigmoid.graph or not is_told:
        return
    if _read_by_integers(result, chosen):
        decision.followers += [sigmoid, product]
        for value in (gate, result):
            decision.values[value.name or ""] = value
            decision.full.add(value.name or "")


def _why_not_follower(node: ir.Node, chosen: Collection[ir.Node], told: Collection[str]) -> str:
    result = fused_result(node)
    is_left_out = bool(told) and result.name not in told
    if (is_left_out or node.op_type == "Concat") and not _read_by_integers(result, chosen):
        return (
            UNTOLD
            if is_left_out
            else "one scale for all that it joins would serve no integer kernel behind it"
        )
    if _is_dilated_pool(node):
        return NO_DILATIONS
    return ""


def _is_dilated_pool(node: ir.Node | None) -> bool:
    if node is None or node.op_type != "AveragePool":
        return False
    return any(step != 1 for step in node.attributes.get_ints("dilations") or ())


def _moved_from(value: ir.Value) -> ir.Node | None:
    """What computes a value that operators which only move numbers hand on."""
    node = value.producer()
    while node is not None and node.op_type in SAME_SCALE and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    return node


def _read_by_integers(value: ir.Value, chosen: Collection[ir.Node]) -> bool:
    """Whether a layer that becomes integers reads the value, perhaps behind followers."""
    seen, waiting = {value}, [value]
    while waiting:
        for reader in waiting.pop().consumers():
            if reader in chosen:
                return True
            if reader.op_type in INTEGER_FOLLOWERS | SAME_SCALE | FUSED_ACTIVATIONS:
                waiting += [output for output in reader.outputs if output not in seen]
                seen.update(reader.outputs)
    return False


def fused_result(node: ir.Node) -> ir.Value:
    """A node's output, or that of the Relu or Clip that alone reads it."""
    output = node.outputs[0]
    consumers = output.consumers()
    if len(consumers) == 1 and not output.is_graph_output():
        only = consumers[0]
        if only.graph is node.graph and only.op_type in FUSED_ACTIVATIONS and only.domain in ("", "ai.onnx"):
            return only.outputs[0]
    return output


def _why_not_onnxruntime(layer: LinearLayer) -> str:
    if _is_dilated_pool(_moved_from(layer.data)):
        return f"it reads an AveragePool with dilations: {NO_DILATIONS}"
    if layer.bias is None:
        return ""
    if layer.bias.const_value is None or layer.bias.is_graph_input():
        return "its bias is not a constant"
    channels = constant_array(layer.weight).shape[layer.out_axis]
    if constant_array(layer.bias).size != channels:
        return "its bias is not one number per output channel"
    return ""


def decide_tensorrt(model: ir.Model, layers: Iterable[LinearLayer], exclude: Collection[str]) -> Decision:
    """Inputs of Conv, Gemm and MatMul and the residual operand of Add, where TensorRT has integer tactics."""
    decision = Decision()
    for layer in layers:
        reason = "left in float" if layer.name in exclude else _why_not_tensorrt(layer)
        if reason:
            decision.remarks.append(Remark(layer.name, reason))
            continue
        decision.layers.append(layer)
        decision.values[layer.data.name or ""] = layer.data
    produced = {layer.node: layer for layer in decision.layers if layer.op_type == "Conv"}
    for node in model.graph:
        if node.op_type != "Add" or node.domain not in ("", "ai.onnx"):
            continue
        residual = _residual_operand(node, produced)
        if residual is not None:
            decision.followers.append(node)
            decision.values[residual.name or ""] = residual
    return decision


def _residual_operand(node: ir.Node, produced: dict[ir.Node, LinearLayer]) -> ir.Value | None:
    """The operand of an Add that is the skip branch beside a quantized convolution, if there is one."""
    left, right = node.inputs
    if left is None or right is None or left.const_value is not None or right.const_value is not None:
        return None
    for main, skip in ((right, left), (left, right)):
        producer = main.producer()
        if producer is not None and producer in produced and len(main.uses()) == 1:
            return skip
    return None


def _why_not_tensorrt(layer: LinearLayer) -> str:
    shape = constant_array(layer.weight).shape
    if layer.op_type == "Conv":
        channels = (int(shape[0]), int(shape[1]) * layer.group)
        if min(channels) < MIN_TENSORRT_CHANNELS:
            return f"Conv with {min(channels)} channels: no integer tactic under {MIN_TENSORRT_CHANNELS}"
        return ""
    if min(shape) < MIN_TENSORRT_CHANNELS:
        return f"matrix product of {shape[0]}x{shape[1]}: TensorRT has no integer tactic under 16"
    if _is_vector(layer.data, layer.node.attributes.get_int("transA", 0)):
        return "matrix-vector product: bound by memory, integers only add casts"
    return ""


def _is_vector(data: ir.Value, transposed: int) -> bool:
    """Whether the data operand is known to be a single row."""
    if data.shape is None or len(data.shape) < 1:
        return False
    rows = 1
    for index, size in enumerate(data.shape):
        if index == len(data.shape) - 1 - transposed:
            continue
        if not isinstance(size, int):
            return False
        rows *= size
    return rows == 1
