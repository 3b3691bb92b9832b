"""Values that are always the same, although nodes compute them: exporters slice and join recurrent weights so."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from sparsecc.rules import Trait, traits_of
from sparsecc.shapes.infer import evaluated


def fixed_array(value: ir.Value | None) -> np.ndarray | None:
    """The numbers of a value that depends on no input, over operators that only move numbers; None otherwise."""
    if value is None:
        return None
    if value.const_value is not None and not value.is_graph_input():
        return value.const_value.numpy()
    nodes: list[ir.Node] = []
    constants: dict[ir.Value, np.ndarray] = {}
    pending = [value]
    while pending:
        operand = pending.pop()
        producer = operand.producer()
        if operand.const_value is not None and not operand.is_graph_input():
            constants[operand] = operand.const_value.numpy()
        elif producer is None or producer.domain or not _moves(producer):
            return None
        elif producer not in nodes:
            nodes.append(producer)
            pending.extend(v for v in producer.inputs if v is not None)
    return _computed(value, nodes, constants)


def _moves(node: ir.Node) -> bool:
    """Whether any runtime computes the same of a node, to the bit. A Cast may round."""
    return node.op_type == "Concat" or (node.op_type != "Cast" and bool(traits_of(node) & Trait.MOVES))


def _computed(value: ir.Value, nodes: list[ir.Node], known: dict[ir.Value, np.ndarray]) -> np.ndarray | None:
    graph = nodes[0].graph
    assert isinstance(graph, ir.Graph)
    version = graph.opset_imports.get("", 18)
    for node in (node for node in graph if node in nodes):
        results = evaluated(node, [None if v is None else known[v] for v in node.inputs], version)
        if len(results) < len(node.outputs):
            return None
        known.update(zip(node.outputs, results, strict=False))
    return known[value]
