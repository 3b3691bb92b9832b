"""Layers that share one weight (heads over levels, unrolled cells), and the order in which all are asked at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from sparsecc.ir.subgraphs import reads

Sharers = Mapping[ir.Node, Sequence[ir.Node]]
"""For each node that shares its weight: all that do, in the model's order."""


def sharers_of(nodes: Sequence[ir.Node]) -> dict[ir.Node, tuple[ir.Node, ...]]:
    """The layers among `nodes` that read one weight with others."""
    by_weight: dict[ir.Value, list[ir.Node]] = {}
    for node in nodes:
        weight = node.inputs[1]
        assert weight is not None
        by_weight.setdefault(weight, []).append(node)
    return {node: tuple(alike) for alike in by_weight.values() if len(alike) > 1 for node in alike}


def side_by_side(graph: ir.Graph, sharers: Sharers) -> list[ir.Node]:
    """The nodes of a graph in an order in which sharers follow each other, as far as they do not need each other.

    A sharer waits until all of its kind can run; where only sharers are left to run and no kind is complete, the first
    of them goes alone.
    """
    nodes = list(graph)
    if not sharers:
        return nodes
    place = {node: i for i, node in enumerate(nodes)}
    needs = {
        node: {p for v in reads(node) if (p := v.producer()) is not None and p in place} for node in nodes
    }
    readers: dict[ir.Node, list[ir.Node]] = {}
    for node, needed in needs.items():
        for one in needed:
            readers.setdefault(one, []).append(node)
    left = {node: len(needed) for node, needed in needs.items()}
    ready = [node for node in nodes if not left[node]]
    order: list[ir.Node] = []
    while ready:
        going = _next(ready, sharers, place, set(order))
        for node in going:
            ready.remove(node)
            order.append(node)
            for reader in readers.get(node, ()):
                left[reader] -= 1
                if not left[reader]:
                    ready.append(reader)
    return order


def _next(
    ready: Sequence[ir.Node], sharers: Sharers, place: Mapping[ir.Node, int], done: set[ir.Node]
) -> Sequence[ir.Node]:
    """What runs next of the nodes that can."""
    plain = [node for node in ready if node not in sharers]
    if plain:
        return [min(plain, key=place.__getitem__)]
    waiting = set(ready)
    first = sorted(ready, key=place.__getitem__)
    for node in first:
        if waiting.union(done).issuperset(sharers[node]):
            return [one for one in sharers[node] if one in waiting]
    return first[:1]
