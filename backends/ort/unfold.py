"""Constants that an optimizer computed and stored beside what it computed them from, left to be computed at load.

A table that is read and also multiplied by, transposed, would lie in the file twice; sessions fold it again.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from sparsecc.ir.subgraphs import has_body

_LEAST = 1024
"""Bytes that must be saved for each node: it takes some itself."""
_LONGEST = 8
"""Nodes that compute one constant: a longer way is no copy."""


def unfold(optimized: ir.Model, source: ir.Model) -> list[str]:
    """Give back the nodes of `source` whose results `optimized` holds as constants, where that makes it smaller, in
    place. The names of these constants."""
    sources = {value.name: node for node in source.graph for value in node.outputs if value.name}
    found = []
    for name, constant in list(optimized.graph.initializers.items()):
        node, tensor = sources.get(name), constant.const_value
        if node is None or tensor is None or constant.is_graph_output() or tensor.nbytes < _LEAST:
            continue
        held = optimized.graph.initializers
        chain, roots = _computed_from(node, held)
        added = sum(_bytes(root) for root in roots if root.name not in held)
        if chain and tensor.nbytes - added >= _LEAST * len(chain):
            _put_back(optimized.graph, constant, chain, roots)
            found.append(name)
    return found


def _computed_from(last: ir.Node, held: Mapping[str, ir.Value]) -> tuple[list[ir.Node], list[ir.Value]]:
    """The nodes that compute a node's result, first to last, from constants, those `held` if they can be, and these
    constants; no nodes where there is more to it."""
    chain: list[ir.Node] = []
    roots: dict[ir.Value, None] = {}
    waiting = [last]
    while waiting:
        node = waiting.pop()
        if has_body(node) or len(node.outputs) != 1 or not node.inputs or len(chain) == _LONGEST:
            return [], []
        chain.append(node)
        for value in node.inputs:
            if value is None:
                continue
            producer = value.producer()
            if producer is not None and value.name not in held:
                waiting.append(producer)
            elif _is_kept(value, held):
                roots[value] = None
            else:
                return [], []
    ordered = dict.fromkeys(reversed(chain))  # what is needed twice stands where it is needed first
    return list(ordered), list(roots)


def _is_kept(value: ir.Value, held: Mapping[str, ir.Value]) -> bool:
    """Whether a value is a constant that the optimizer did not change under its name."""
    if value.is_graph_input():
        return False
    now = held.get(value.name or "")
    if now is None or now.const_value is None or value.const_value is None:
        return value.const_value is not None or now is not None
    return value.const_value.nbytes == now.const_value.nbytes and np.array_equal(
        value.const_value.numpy(), now.const_value.numpy()
    )


def _bytes(value: ir.Value) -> int:
    assert value.const_value is not None
    return value.const_value.nbytes


def _put_back(graph: ir.Graph, constant: ir.Value, chain: list[ir.Node], roots: list[ir.Value]) -> None:
    """In place of a constant the nodes that compute it; those that an earlier constant brought along are shared."""
    known: dict[str | None, ir.Value] = {value.name: value for node in graph for value in node.outputs}
    for root in roots:
        if root.name not in graph.initializers:
            graph.register_initializer(
                ir.Value(name=root.name, type=root.type, shape=root.shape, const_value=root.const_value)
            )
    first = graph.node(0)
    for node in chain:
        output = node.outputs[0]
        if output.name in known:
            continue
        made = ir.Value(name=output.name, type=constant.type if node is chain[-1] else output.type)
        operands = [
            None if value is None else known.get(value.name) or graph.initializers[value.name or ""]
            for value in node.inputs
        ]
        graph.insert_before(
            first,
            ir.node(
                node.op_type,
                operands,
                dict(node.attributes),
                domain=node.domain,
                outputs=[made],
                name=node.name,
            ),
        )
        known[output.name] = made
    graph.initializers.pop(constant.name or "")
    constant.replace_all_uses_with(known[constant.name])
