"""Operators that cost the same: what fixes a kernel but the channel counts, and the model that times it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Feeds = dict[str, np.ndarray]
OPSET = 17
IR_VERSION = 9


@dataclass(frozen=True)
class ShapeClass:
    """One operator at one size, with its channel counts left open.

    `op` is Conv, Depthwise, Grouped or MatMul; `inputs` and `outputs` are the counts in the dense model (for
    MatMul k and n). `data` holds the sizes beside the channels: batch and spatial ones, for MatMul the rows.
    `attributes` are those of Conv; `constant` says whether MatMul's second operand is a weight.
    """

    op: str
    inputs: int
    outputs: int
    data: tuple[int, ...]
    kernel: tuple[int, ...] = ()
    attributes: tuple[tuple[str, tuple[int, ...]], ...] = ()
    groups: int = 1
    constant: bool = True

    @property
    def key(self) -> str:
        """Text that names all of it."""
        return repr(self)

    def grid(self) -> tuple[list[int], list[int]]:
        """The counts that are timed: of the inputs, of the outputs."""
        if self.op == "Grouped":
            return [self.inputs], [self.outputs]
        if self.op == "Depthwise":
            return steps(self.inputs), [1]
        return steps(self.inputs), steps(self.outputs)


def steps(size: int) -> list[int]:
    """Where a staircase is sampled: every kernel step of narrow layers, eight places of wide ones."""
    if size < 8:
        return [size]
    step = 16 if size > 64 else 8 if size > 16 else 4
    wide = max(step, -(-size // (8 * step)) * step)
    return [*(n for n in range(wide, size, wide)), size]


def timing_model(one: ShapeClass, points: Sequence[tuple[int, int]]) -> tuple[onnx.ModelProto, Feeds]:
    """A model with one node per point (inputs, outputs), named `p0`, `p1`, …, and inputs to run it on."""
    generator = np.random.default_rng(0)
    feeds: Feeds = {}
    nodes, weights = [], []
    for number, (a, b) in enumerate(points):
        left, right = _operands(one, a, b)
        feeds.setdefault(f"x{a}", generator.standard_normal(left).astype(np.float32))
        values = generator.standard_normal(right).astype(np.float32)
        if one.constant:
            weights.append(numpy_helper.from_array(values, f"w{number}"))
        else:
            feeds[f"w{number}"] = values
        nodes.append(_node(one, a, f"x{a}", f"w{number}", f"p{number}"))
    inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, list(v.shape)) for n, v in feeds.items()]
    outputs = [helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, None) for node in nodes]
    graph = helper.make_graph(nodes, "timing", inputs, outputs, weights)
    opsets = [helper.make_opsetid("", OPSET)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION), feeds


def _operands(one: ShapeClass, a: int, b: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The shapes of the data and of the weight."""
    if one.op == "MatMul":
        return (*one.data, a), (a, b)
    data = (one.data[0], a, *one.data[1:])
    if one.op == "Depthwise":
        return data, (a, 1, *one.kernel)
    return data, (b, a // one.groups, *one.kernel)


def _node(one: ShapeClass, a: int, data: str, weight: str, name: str) -> onnx.NodeProto:
    if one.op == "MatMul":
        return helper.make_node("MatMul", [data, weight], [name], name=name)
    attributes: dict[str, Any] = {key: list(value) for key, value in one.attributes}
    groups = a if one.op == "Depthwise" else one.groups
    return helper.make_node("Conv", [data, weight], [name], name=name, group=groups, **attributes)
