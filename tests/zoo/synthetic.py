"""Graphs of any length, made directly with onnx_ir without an exporter."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

WIDTH, HIDDEN, SIDE, BLOCKS_PER_STAGE = 8, 12, 4, 40


class _Builder:
    """Appends nodes; every initializer of one shape shares one array, so that length costs no memory."""

    def __init__(self) -> None:
        self.nodes: list[ir.Node] = []
        self.initializers: list[ir.Value] = []
        self.arrays: dict[tuple[int, ...], np.ndarray] = {}

    def weight(self, *shape: int) -> ir.Value:
        if shape not in self.arrays:
            values = np.random.default_rng(len(self.arrays)).standard_normal(shape)
            self.arrays[shape] = (0.1 * values).astype(np.float32)
        name = f"weight_{len(self.initializers)}"
        tensor = ir.tensor(self.arrays[shape], name=name)
        value = ir.Value(
            name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(shape), const_value=tensor
        )
        self.initializers.append(value)
        return value

    def node(
        self, op: str, inputs: list[ir.Value], shape: list[int | str], **attributes: list[int]
    ) -> ir.Value:
        name = f"{op}_{len(self.nodes)}"
        node = ir.node(op, inputs, attributes=attributes, name=name)
        out = node.outputs[0]
        out.name, out.type, out.shape = f"{name}_out", ir.TensorType(ir.DataType.FLOAT), ir.Shape(shape)
        self.nodes.append(node)
        return out

    def conv_block(self, x: ir.Value) -> ir.Value:
        """Five nodes: Conv, Relu, Conv, Add, Relu."""
        wide: list[int | str] = ["batch", HIDDEN, SIDE, SIDE]
        narrow: list[int | str] = ["batch", WIDTH, SIDE, SIDE]
        inner = self.node("Conv", [x, self.weight(HIDDEN, WIDTH, 1, 1)], wide)
        inner = self.node("Relu", [inner], wide)
        inner = self.node("Conv", [inner, self.weight(WIDTH, HIDDEN, 3, 3)], narrow, pads=[1, 1, 1, 1])
        return self.node("Relu", [self.node("Add", [inner, x], narrow)], narrow)

    def mlp_block(self, x: ir.Value) -> ir.Value:
        """Six nodes: MatMul, Add, Relu, MatMul, Add and the residual Add."""
        wide: list[int | str] = ["batch", HIDDEN]
        narrow: list[int | str] = ["batch", WIDTH]
        inner = self.node("MatMul", [x, self.weight(WIDTH, HIDDEN)], wide)
        inner = self.node("Relu", [self.node("Add", [inner, self.weight(HIDDEN)], wide)], wide)
        inner = self.node("MatMul", [inner, self.weight(HIDDEN, WIDTH)], narrow)
        inner = self.node("Add", [inner, self.weight(WIDTH)], narrow)
        return self.node("Add", [x, inner], narrow)


def synthetic_graph(nodes: int) -> ir.Model:
    """A residual network of `nodes` nodes or up to six more: half convolution blocks, then half MLP blocks.

    Input "image" (batch, 3, 4, 4), output "logits" (batch, 5). Every 40 blocks a convolution or MatMul
    with a Tanh starts a new residual stream, which keeps values bounded. Opset 18.
    """
    build = _Builder()
    image = ir.Value(
        name="image", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["batch", 3, SIDE, SIDE])
    )
    maps: list[int | str] = ["batch", WIDTH, SIDE, SIDE]
    x = build.node("Conv", [image, build.weight(WIDTH, 3, 1, 1)], maps)
    blocks = 0
    while len(build.nodes) < nodes // 2:
        blocks += 1
        if blocks % BLOCKS_PER_STAGE == 0:
            x = build.node("Tanh", [build.node("Conv", [x, build.weight(WIDTH, WIDTH, 1, 1)], maps)], maps)
        x = build.conv_block(x)
    x = build.node("GlobalAveragePool", [x], ["batch", WIDTH, 1, 1])
    rows: list[int | str] = ["batch", WIDTH]
    x = build.node("Flatten", [x], rows)
    while len(build.nodes) < nodes - 1:
        blocks += 1
        if blocks % BLOCKS_PER_STAGE == 0:
            x = build.node("MatMul", [x, build.weight(WIDTH, WIDTH)], rows)
            x = build.node("Tanh", [x], rows)
        x = build.mlp_block(x)
    logits = build.node("MatMul", [x, build.weight(WIDTH, 5)], ["batch", 5])
    logits.name = "logits"
    graph = ir.Graph(
        [image],
        [logits],
        nodes=build.nodes,
        initializers=build.initializers,
        opset_imports={"": 18},
        name="synthetic",
    )
    return ir.Model(graph, ir_version=9)
