"""Graphs inside nodes: the branches of an If, the bodies of Loop and Scan, and what they read from around them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx_ir as ir
from onnx_ir.passes.common import LiftConstantsToInitializersPass

GRAPHS = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)


def bodies_of(node: ir.Node) -> Iterator[ir.Graph]:
    """The graphs that a node holds, outermost only."""
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()


def has_body(node: ir.Node) -> bool:
    """Whether a node holds a graph. What that reads from around it is not among the node's inputs."""
    return any(attribute.type in GRAPHS for attribute in node.attributes.values())


def reads(node: ir.Node) -> list[ir.Value]:
    """The values a node reads, with those its bodies capture from around it."""
    found = [v for v in node.inputs if v is not None]
    for body in bodies_of(node):
        inside = {body, *body.subgraphs()}
        for inner in body.all_nodes():
            found += [v for v in inner.inputs if v is not None and v.graph not in inside]
    return found


def one_scope(model: ir.Model) -> None:
    """Constants become initializers of the main graph, those inside bodies too, and every name stands once.

    Names of the main graph stay. A body then reads all its weights from around it, and what a name means does
    not depend on where it is written.
    """
    for graph in model.graph.subgraphs():
        _own_outputs(graph)
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    name_values(model)
    for graph in model.graph.subgraphs():
        for name, value in list(graph.initializers.items()):
            graph.initializers.pop(name)
            if value.is_graph_input():  # a default that is never used: the node gives a value
                value.const_value = None
            else:
                model.graph.register_initializer(value)


def _own_outputs(body: ir.Graph) -> None:
    """An output of a body that is a constant, or a value from around it, is handed on by an Identity."""
    for place, value in enumerate(list(body.outputs)):
        producer = value.producer()
        made_here = producer is not None and producer.graph is body and producer.op_type != "Constant"
        if made_here or (value in body.inputs and not value.is_initializer()):
            continue
        carrier = ir.node("Identity", [value])
        body.append(carrier)
        carrier.outputs[0].type = value.type
        body.outputs[place] = carrier.outputs[0]


def name_values(model: ir.Model) -> None:
    """Give nameless values names, and those inside bodies a number where their name is taken.

    An output without a name that nobody reads is one that was left out, and stays so.
    """
    graph = model.graph
    taken = set(graph.initializers) | {v.name for v in (*graph.inputs, *graph.outputs) if v.name}
    taken |= {v.name for node in graph for v in node.outputs if v.name}
    for number, node in enumerate(graph):
        for value in node.outputs:
            if _lacks_name(value):
                value.name = fresh(f"{node.op_type}_{number}_out", taken)
    called = {value for body in _called(model) for value in (*body.inputs, *body.outputs)}
    for body in graph.subgraphs():
        for value in _values(body):
            if _lacks_name(value) or (value.name in taken and value not in called):
                value.name = fresh(value.name or "inner", taken)
            taken |= {value.name} if value.name else set()


_CALLERS = frozenset({"BeamSearch", "GreedySearch", "Sampling", "WhisperBeamSearch"})
"""Operators of com.microsoft that know the inputs and outputs of their bodies by name."""


def _called(model: ir.Model) -> Iterator[ir.Graph]:
    """Bodies whose interface keeps its names."""
    for node in model.graph.all_nodes():
        if node.op_type in _CALLERS:
            yield from bodies_of(node)


def show(model: ir.Model, names: Iterable[str]) -> None:
    """Values of the main graph become outputs too, behind those that there are."""
    known = {value.name: value for node in model.graph for value in node.outputs}
    model.graph.outputs.extend(known[name] for name in names)


def _lacks_name(value: ir.Value) -> bool:
    return not value.name and (bool(value.uses()) or value.is_graph_output() or value.is_graph_input())


def _values(graph: ir.Graph) -> list[ir.Value]:
    made = [v for node in graph for v in node.outputs]
    return list(dict.fromkeys((*graph.inputs, *graph.initializers.values(), *made)))


def fresh(stem: str, taken: set[str]) -> str:
    """A name that is not taken; it is from then on."""
    name, number = stem, 1
    while name in taken:
        number += 1
        name = f"{stem}{number}"
    taken.add(name)
    return name
