"""How far the values of bodies (If, Loop, Scan) reach: least and greatest of every run are handed out of them."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import numpy as np
import onnx_ir as ir

from sparsecc.ir.graph_editor import GraphEditor
from sparsecc.ir.subgraphs import bodies_of

ENTERED = frozenset({"If", "Loop", "Scan"})
"""Operators whose bodies are known to run as these say."""


def entered_nodes(graph: ir.Graph) -> Iterator[ir.Node]:
    """The nodes of a graph and of such bodies, in order once the graph is sorted."""
    for node in graph:
        if node.op_type in ENTERED and not node.domain:
            for body in bodies_of(node):
                yield from entered_nodes(body)
        yield node


def show_ends(model: ir.Model, names: Collection[str], *, infinite: bool = False) -> dict[str, str]:
    """Edit a model so that what values of bodies reach can be seen; value -> value of the main graph.

    That is float32[2], the least and the greatest of all numbers of the value in all runs of its body, and zero: each
    iteration hands out its own, and a branch that is not taken zeros. With `infinite`, infinities count as zeros.
    """
    showing = _Showing(GraphEditor(model), frozenset(names), infinite=infinite)
    shown = {name: value.name or "" for name, value in showing.of_graph(model.graph).items()}
    model.graph.sort()
    return shown


class _Showing:
    def __init__(self, editor: GraphEditor, names: frozenset[str], *, infinite: bool) -> None:
        self.editor, self.names, self.infinite = editor, names, infinite
        self.flat = editor.constant("one_axis", np.array([-1]))
        self.zero, self.zeros = (editor.zeros((size,), np.float32) for size in (1, 2))

    def of_graph(self, graph: ir.Graph) -> dict[str, ir.Value]:
        """Ends, as values of this graph, of what is wanted in it and in all bodies inside."""
        found: dict[str, ir.Value] = {}
        for node in list(graph):
            if node.op_type in ENTERED and not node.domain:
                found |= self._of_bodies(node)
        if graph is not self.editor.graph:
            made = (value for node in list(graph) for value in node.outputs)
            wanted = [value for value in (*graph.inputs, *made) if value.name in self.names]
            found |= {value.name or "": self._ends(value) for value in wanted}
        return found

    def _of_bodies(self, node: ir.Node) -> dict[str, ir.Value]:
        bodies = list(bodies_of(node))
        given = [self.of_graph(body) for body in bodies]
        found = {}
        for name in dict.fromkeys(name for known in given for name in known):
            for body, known in zip(bodies, given, strict=True):
                body.outputs.append(known[name] if name in known else self._nothing(body))
            node.resize_outputs(len(node.outputs) + 1)
            handed = node.outputs[-1]
            handed.name, handed.type = self.editor.fresh(f"{name}_ends"), ir.TensorType(ir.DataType.FLOAT)
            for order in ("scan_output_axes", "scan_output_directions"):
                if order in node.attributes:
                    numbers = [*node.attributes[order].as_ints(), 0]
                    node.attributes[order] = ir.Attr(order, ir.AttributeType.INTS, numbers)
            found[name] = handed if node.op_type == "If" else self._ends(handed)
        return found

    def _nothing(self, body: ir.Graph) -> ir.Value:
        made = ir.node("Identity", [self.zeros])
        made.outputs[0].name, made.outputs[0].type = (
            self.editor.fresh("ends"),
            ir.TensorType(ir.DataType.FLOAT),
        )
        body.append(made)
        return made.outputs[0]

    def _ends(self, value: ir.Value) -> ir.Value:
        """Least and greatest of the numbers of a value, of which there may be none, and zero."""
        flat = self._behind(value, "Reshape", [value, self.flat])
        if self.infinite:
            is_infinite = self._behind(flat, "IsInf", [flat], type_=ir.DataType.BOOL)
            flat = self._behind(is_infinite, "Where", [is_infinite, self.zero, flat])
        whole = self._behind(flat, "Concat", [self.zero, flat], axis=0)
        low, high = (
            self._behind(whole, operator, [whole], keepdims=1) for operator in ("ReduceMin", "ReduceMax")
        )
        return self._behind(high, "Concat", [low, high], axis=0)

    def _behind(
        self,
        value: ir.Value,
        operator: str,
        inputs: list[ir.Value],
        type_: ir.DataType = ir.DataType.FLOAT,
        **attributes: int,
    ) -> ir.Value:
        base = f"{value.name}_{operator}"
        return self.editor.add_behind(value, operator, inputs, attributes=attributes, base=base, dtype=type_)
