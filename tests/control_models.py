"""Models with bodies, drawn at random: conditions, loops and scans within each other, over one width or several."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FEATURES = 6


class ModelWithBodies:
    """Builds nodes of values (N, width); every body may read whatever stands around it."""

    def __init__(self, seed: int, *, same_names: bool = False) -> None:
        self.rng = np.random.default_rng(seed)
        self.same_names = same_names
        self.outer: list[onnx.TensorProto] = []
        self.count = 0

    def model(self, steps: int = 4, depth: int = 2) -> onnx.ModelProto:
        """x (N, 6) -> y (N, 3), with a condition `c` and a trip count `n` as inputs."""
        nodes: list[onnx.NodeProto] = []
        value, width = self._linear(nodes, "x", FEATURES, self._width(), self.outer)
        for _ in range(steps):
            value, width = self._step(nodes, value, width, depth, self.outer)
        value, _ = self._linear(nodes, value, width, 3, self.outer)
        nodes.append(helper.make_node("Identity", [value], ["y"]))
        inputs = [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", FEATURES]),
            helper.make_tensor_value_info("c", TensorProto.BOOL, []),
            helper.make_tensor_value_info("n", TensorProto.INT64, []),
        ]
        outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3])]
        graph = helper.make_graph(nodes, "bodies", inputs, outputs, self.outer)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)

    def _width(self) -> int:
        return int(self.rng.choice([8, 12, 16]))

    def _name(self, stem: str) -> str:
        self.count += 1
        return f"{stem}{self.count}"

    def _weight(self, *shape: int, into: list[onnx.TensorProto]) -> str:
        """A weight of the graph that `into` belongs to, or of the main one: both are legal."""
        store = into if self.rng.random() < 0.5 else self.outer
        array = self.rng.normal(0, 0.5, shape).astype(np.float32)
        taken = {t.name for t in store}
        name = "w" if self.same_names and store is not self.outer and "w" not in taken else self._name("w")
        store.append(numpy_helper.from_array(array, name))
        return name

    def _linear(
        self, nodes: list[onnx.NodeProto], value: str, old: int, new: int, into: list[onnx.TensorProto]
    ) -> tuple[str, int]:
        out = self._name("v")
        nodes.append(helper.make_node("MatMul", [value, self._weight(old, new, into=into)], [out]))
        return self._activated(nodes, out), new

    def _activated(self, nodes: list[onnx.NodeProto], value: str) -> str:
        out = self._name("v")
        nodes.append(helper.make_node(str(self.rng.choice(["Tanh", "Relu", "Sigmoid"])), [value], [out]))
        return out

    def _step(
        self, nodes: list[onnx.NodeProto], value: str, width: int, depth: int, into: list[onnx.TensorProto]
    ) -> tuple[str, int]:
        kinds = ["linear", "residual", "norm"] + (["if", "loop", "scan"] * 2 if depth else [])
        kind = str(self.rng.choice(kinds))
        if kind == "linear":
            return self._linear(nodes, value, width, self._width(), into)
        if kind == "residual":
            inner, _ = self._linear(nodes, value, width, width, into)
            out = self._name("v")
            nodes.append(helper.make_node("Add", [value, inner], [out]))
            return out, width
        if kind == "norm":
            out = self._name("v")
            scale = self._weight(width, into=into)
            nodes.append(helper.make_node("LayerNormalization", [value, scale], [out]))
            return out, width
        made = {"if": self._branches, "loop": self._loop, "scan": self._scan}[kind]
        return made(nodes, value, width, depth - 1, into)

    def _branches(
        self, nodes: list[onnx.NodeProto], value: str, width: int, depth: int, into: list[onnx.TensorProto]
    ) -> tuple[str, int]:
        """Two branches that end in the same width and read `value` from around them."""
        new = self._width()
        graphs = {}
        for branch in ("then_branch", "else_branch"):
            own: list[onnx.TensorProto] = []
            inner: list[onnx.NodeProto] = []
            middle, mid = self._step(inner, value, width, depth, own)
            result, _ = self._linear(inner, middle, mid, new, own)
            info = helper.make_tensor_value_info(result, TensorProto.FLOAT, ["N", new])
            graphs[branch] = helper.make_graph(inner, branch, [], [info], own)
        out = self._name("v")
        nodes.append(helper.make_node("If", ["c"], [out], **graphs))
        return out, new

    def _state(self, width: int) -> tuple[str, onnx.ValueInfoProto]:
        name = "state" if self.same_names else self._name("state")
        return name, helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", width])

    def _loop(
        self, nodes: list[onnx.NodeProto], value: str, width: int, depth: int, into: list[onnx.TensorProto]
    ) -> tuple[str, int]:
        """A state that adds up what a step makes of it and of the value it started from; gives the sum of both."""
        own: list[onnx.TensorProto] = []
        inner: list[onnx.NodeProto] = []
        state, info = self._state(width)
        number, going, on, out = (self._name(s) for s in ("i", "going", "on", "v"))
        inner.append(helper.make_node("Identity", [going], [on]))
        middle, mid = self._step(inner, state, width, depth, own)
        back, _ = self._linear(inner, middle, mid, width, own)
        summed, stacked = self._name("v"), self._name("v")
        inner.append(helper.make_node("Add", [back, value], [summed]))
        inner.append(helper.make_node("Tanh", [summed], [stacked]))
        inputs = [
            helper.make_tensor_value_info(number, TensorProto.INT64, []),
            helper.make_tensor_value_info(going, TensorProto.BOOL, []),
            info,
        ]
        results = [
            helper.make_tensor_value_info(on, TensorProto.BOOL, []),
            *(helper.make_tensor_value_info(v, TensorProto.FLOAT, ["N", width]) for v in (summed, stacked)),
        ]
        body = helper.make_graph(inner, "body", inputs, results, own)
        last, every = self._name("v"), self._name("v")
        nodes.append(helper.make_node("Loop", ["n", "", value], [last, every], body=body))
        return self._joined(nodes, last, every, out), width

    def _scan(
        self, nodes: list[onnx.NodeProto], value: str, width: int, depth: int, into: list[onnx.TensorProto]
    ) -> tuple[str, int]:
        """Scans two copies of the value."""
        both, axis = self._name("v"), self._name("axis")
        self.outer.append(numpy_helper.from_array(np.asarray([0]), axis))
        first = self._name("v")
        nodes.append(helper.make_node("Unsqueeze", [value, axis], [first]))
        nodes.append(helper.make_node("Concat", [first, first], [both], axis=0))
        own: list[onnx.TensorProto] = []
        inner: list[onnx.NodeProto] = []
        state, info = self._state(width)
        seen = self._name("seen")
        middle, mid = self._step(inner, state, width, depth, own)
        back, _ = self._linear(inner, middle, mid, width, own)
        summed, stacked = self._name("v"), self._name("v")
        inner.append(helper.make_node("Add", [back, seen], [summed]))
        inner.append(helper.make_node("Tanh", [summed], [stacked]))
        results = [
            helper.make_tensor_value_info(v, TensorProto.FLOAT, ["N", width]) for v in (summed, stacked)
        ]
        given = [info, helper.make_tensor_value_info(seen, TensorProto.FLOAT, ["N", width])]
        body = helper.make_graph(inner, "body", given, results, own)
        last, every, out = (self._name("v") for _ in range(3))
        nodes.append(helper.make_node("Scan", [value, both], [last, every], num_scan_inputs=1, body=body))
        return self._joined(nodes, last, every, out), width

    def _joined(self, nodes: list[onnx.NodeProto], last: str, every: str, out: str) -> str:
        """The last state plus the sum of what all iterations gave."""
        axis, summed = self._name("axis"), self._name("v")
        self.outer.append(numpy_helper.from_array(np.asarray([0]), axis))
        nodes.append(helper.make_node("ReduceSum", [every, axis], [summed], keepdims=0))
        nodes.append(helper.make_node("Add", [last, summed], [out]))
        return out
