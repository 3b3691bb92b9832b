"""NVFP4 and MXFP8 on the CPU: TensorRT's operators for them as standard ones, which round in the same way.

`block_floats` has the same arithmetic in numpy, for constants and for tests.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from sparsecc.runtime.block_floats import E4M3_MAX, LEAST_EXPONENT, MXFP8, NVFP4, BlockFormat, Encoded

if TYPE_CHECKING:
    from sparsecc.ir.graph_editor import GraphEditor

DOMAIN = "trt"
TO_NVFP4, TO_MXFP8, FROM_MXFP8 = (
    "TRT_FP4DynamicQuantize",
    "TRT_MXFP8DynamicQuantize",
    "TRT_MXFP8DequantizeLinear",
)
_FLOAT = ir.DataType.FLOAT


def unblocked(model: ir.Model) -> bool:
    """Write the rounding of every such tensor in standard operators, in place; whether there was any."""
    from sparsecc.ir.graph_editor import GraphEditor

    if not any(node.domain == DOMAIN or _is_nvfp4(node) for node in model.graph.all_nodes()):
        return False
    editor = GraphEditor(model)
    for node in list(model.graph.all_nodes()):
        if node.domain == DOMAIN and node.op_type in (TO_NVFP4, TO_MXFP8):
            _round_activation(editor, node)
        elif _is_nvfp4(node) or (node.domain == DOMAIN and node.op_type == FROM_MXFP8):
            _restore_constant(editor, node)
    editor.finish()
    return True


def _is_nvfp4(node: ir.Node) -> bool:
    stored = node.inputs[0] if node.op_type == "DequantizeLinear" and not node.domain else None
    return stored is not None and stored.dtype == ir.DataType.FLOAT4E2M1


def _restore_constant(editor: GraphEditor, node: ir.Node) -> None:
    """The numbers of a weight."""
    levels = _array(node.inputs[0])
    if levels is None:
        return  # an activation, whose own operator is replaced
    axis = node.attributes.get_int("axis", -1) % levels.ndim
    form, scales, tensor_scale = MXFP8, _array(node.inputs[1]), np.float32(1.0)
    if node.domain != DOMAIN:
        assert node.inputs[1] is not None
        scaling = node.inputs[1].producer()
        assert scaling is not None
        form, scales, whole = NVFP4, _array(scaling.inputs[0]), _array(scaling.inputs[1])
        assert whole is not None
        tensor_scale = np.float32(whole.reshape(()))
    assert scales is not None
    numbers = Encoded(levels, scales, axis, form, tensor_scale).decode()
    editor.replace_value(node.outputs[0], editor.constant(f"{node.outputs[0].name}_real", numbers))


def _array(value: ir.Value | None) -> np.ndarray | None:
    return None if value is None or value.const_value is None else value.const_value.numpy()


def _round_activation(editor: GraphEditor, node: ir.Node) -> None:
    """What is restored of an activation's blocks is the activation, rounded."""
    form = NVFP4 if node.op_type == TO_NVFP4 else MXFP8
    source = node.inputs[0]
    assert source is not None
    steps = _Steps(editor, node, form)
    shape = steps.add("Shape", [source], ir.DataType.INT64)
    exact = steps.add("Cast", [source], to=_FLOAT.value)
    blocks = steps.add("Reshape", [exact, steps.numbers([-1, form.size])])
    largest = steps.add("ReduceMax", [steps.add("Abs", [blocks]), steps.numbers([1])], keepdims=1)
    wanted = steps.add("Div", [largest, steps.number(form.largest)])
    scale = steps.of_tensor(wanted, node.inputs[1]) if form is NVFP4 else steps.power_of_two(wanted)
    none = steps.add("Equal", [scale, steps.number(0.0)], ir.DataType.BOOL)
    divided = steps.add("Div", [blocks, steps.add("Where", [none, steps.number(1.0), scale])])
    bounds = [steps.number(-form.largest), steps.number(form.largest)]
    clipped = steps.add("Clip", [divided, *bounds])
    levels = steps.on_grid(clipped) if form is NVFP4 else steps.as_e4m3(clipped)
    rounded = steps.add("Reshape", [steps.add("Mul", [levels, scale]), shape])
    for reader in list(node.outputs[0].consumers()):
        editor.replace_value(reader.outputs[0], rounded)


class _Steps:
    """Standard operators before a node."""

    def __init__(self, editor: GraphEditor, node: ir.Node, form: BlockFormat) -> None:
        self.editor, self.node, self.base = editor, node, f"{node.outputs[0].name}_{form.name}"

    def add(
        self, operator: str, inputs: list[Any], dtype: ir.DataType = _FLOAT, **attributes: int
    ) -> ir.Value:
        return self.editor.add(operator, inputs, attributes, base=self.base, before=self.node, dtype=dtype)

    def number(self, value: float) -> ir.Value:
        return self.editor.constant(self.base, np.float32(value))

    def numbers(self, values: list[int]) -> ir.Value:
        return self.editor.constant(self.base, np.array(values))

    def as_e4m3(self, value: ir.Value) -> ir.Value:
        stored = self.add(
            "Cast", [value], ir.DataType.FLOAT8E4M3FN, to=ir.DataType.FLOAT8E4M3FN.value, saturate=1
        )
        return self.add("Cast", [stored], to=_FLOAT.value)

    def of_tensor(self, wanted: ir.Value, tensor_scale: ir.Value | None) -> ir.Value:
        relative = self.add("Min", [self.add("Div", [wanted, tensor_scale]), self.number(E4M3_MAX)])
        return self.add("Mul", [self.as_e4m3(relative), tensor_scale])

    def power_of_two(self, wanted: ir.Value) -> ir.Value:
        """The least one that is not below: a logarithm names one near it, which is compared."""
        wanted = self.add("Max", [wanted, self.number(2.0**LEAST_EXPONENT)])
        exponent = self.add("Div", [self.add("Log", [wanted]), self.number(float(np.log(2.0)))])
        power = self.add("Pow", [self.number(2.0), self.add("Round", [exponent])])
        twice, half = (self.add("Mul", [power, self.number(factor)]) for factor in (2.0, 0.5))
        is_less = self.add("Greater", [wanted, power], ir.DataType.BOOL)
        is_more = self.add("LessOrEqual", [wanted, half], ir.DataType.BOOL)
        return self.add("Where", [is_less, twice, self.add("Where", [is_more, half, power])])

    def on_grid(self, value: ir.Value) -> ir.Value:
        """To 0, 0.5, 1, 1.5, 2, 3, 4 and 6, ties to the even one: `Round` has ties to even, too."""
        size = self.add("Abs", [value])
        under = [self.add("Less", [size, self.number(at)], ir.DataType.BOOL) for at in (2.0, 4.0)]
        coarse = self.add("Where", [under[1], self.number(1.0), self.number(2.0)])
        step = self.add("Where", [under[0], self.number(0.5), coarse])
        return self.add("Mul", [self.add("Round", [self.add("Div", [value, step])]), step])
