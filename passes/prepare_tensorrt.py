"""Clean-ups that TensorRT's parser and its reports want: names for all nodes, no inputs that are weights."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir


def prepare(model: ir.Model) -> dict[str, int]:
    """Make a model that TensorRT's parser takes as it stands, with the same outputs, in place; what changed, counted.

    Every node gets a name of its own, because refusals, layer profiles and the inspector refer to nodes by
    name. Weights that are also graph inputs stop being inputs. Nodes that do nothing at inference go:
    Identity, Dropout, and Cast to the type that the value already has.
    """
    freed = _free_weights(model.graph)
    dropped = sum(_drop_idle_nodes(graph) for graph in _graphs(model.graph))
    return {
        "inputs_that_were_weights": freed,
        "idle_nodes_dropped": dropped,
        "nodes_named": _name_nodes(model),
    }


def _graphs(graph: ir.Graph) -> Iterator[ir.Graph]:
    yield graph
    yield from (g for g in graph.subgraphs() if isinstance(g, ir.Graph))


def _free_weights(graph: ir.Graph) -> int:
    kept = [value for value in graph.inputs if value.name not in graph.initializers]
    freed = len(graph.inputs) - len(kept)
    if freed:
        graph.inputs.clear()
        graph.inputs.extend(kept)
    return freed


def _drop_idle_nodes(graph: ir.Graph) -> int:
    dropped = 0
    for node in list(graph):
        source = node.inputs[0] if node.inputs and _is_idle(node) else None
        output = node.outputs[0] if node.outputs else None
        if source is None or output is None or output.is_graph_output() or source.graph is not graph:
            continue
        output.replace_all_uses_with(source)
        graph.remove(node, safe=True)
        dropped += 1
    return dropped


def _is_idle(node: ir.Node) -> bool:
    if node.domain not in ("", "ai.onnx"):
        return False
    if node.op_type == "Identity":
        return True
    if node.op_type == "Dropout":
        training = node.inputs[2] if len(node.inputs) > 2 else None
        mask_unused = len(node.outputs) < 2 or not node.outputs[1].uses()
        return training is None and mask_unused
    if node.op_type == "Cast":
        source, to = node.inputs[0], node.attributes.get("to")
        return (
            source is not None and to is not None and source.dtype is not None and source.dtype == to.as_int()
        )
    return False


def _name_nodes(model: ir.Model) -> int:
    """Nodes with no name, or one that another node has, get the name of their operator and a free number."""
    taken: set[str] = set()
    nameless: list[ir.Node] = []
    for node in model.graph.all_nodes():
        if not node.name or node.name in taken:
            nameless.append(node)
        else:
            taken.add(node.name)
    counts: dict[str, int] = {}
    for node in nameless:
        number = counts.get(node.op_type, 0)
        while f"{node.op_type}_{number}" in taken:
            number += 1
        counts[node.op_type] = number + 1
        node.name = f"{node.op_type}_{number}"
        taken.add(node.name)
    return len(nameless)
