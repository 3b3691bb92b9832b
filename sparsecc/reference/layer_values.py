"""What the layers that lost slots compute: compared too, since outputs may show nothing of a layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from sparsecc.axes.algebra import Axis, Keep, atoms_of, mask
from sparsecc.axes.sizes import at
from sparsecc.graph.analysis import Analysis
from sparsecc.ir.subgraphs import bodies_of, reads

MOST = 1 << 26
"""Entries of all layers' values that are held at once, as float32 a quarter of a GiB."""


@dataclass(frozen=True)
class LayerValue:
    """A value of the main graph behind a constant that is cut; `slots`: axis -> what is left of it."""

    name: str
    slots: Mapping[int, np.ndarray]

    def left(self, array: np.ndarray) -> np.ndarray:
        """What the pruned graph has of the dense model's value."""
        for axis, index in self.slots.items():
            array = np.take(array, index, axis=axis)
        return array


def layer_values(analysis: Analysis, keep: Keep, probe: int = 0) -> list[LayerValue]:
    """For every use of a constant that loses slots the first value behind it that depends on the inputs, in graph
    order, as many as fit. Nodes in bodies count as the node that holds them."""
    graph, keep = analysis.model.graph, {atom: slots for atom, slots in keep.items() if not slots.all()}
    owners = _owners(graph)
    fed = _fed(graph)
    wanted: dict[ir.Value, None] = {}
    for (node, _), axes in analysis.record.uses.items():
        if any(_lost(axis, keep) for axis in axes):
            wanted |= dict.fromkeys(_behind(owners.get(node, node), fed))
    found, held = [], 0
    for node in graph:
        for value in node.outputs:
            size = _size(analysis, value, probe)
            if value not in wanted or value.is_graph_output() or not value.name or not size:
                continue
            known = analysis.record.axes.get(value)
            if known is None or held + size > MOST:
                continue
            held += size
            lost = {i: mask(axis, keep, probe) for i, axis in enumerate(known) if _lost(axis, keep)}
            found.append(
                LayerValue(value.name, {i: np.flatnonzero(m) for i, m in lost.items() if m is not None})
            )
    return found


def _lost(axis: Axis, keep: Keep) -> bool:
    return any(atom in keep for atom in atoms_of(axis))


def _size(analysis: Analysis, value: ir.Value, probe: int) -> int:
    """Entries of a float value at the probe, 0 where it has another type or an unknown shape."""
    dtype, shape = analysis.shapes.dtype(value), analysis.shapes.of(value)
    if dtype is None or not dtype.is_floating_point() or shape is None:
        return 0
    return int(np.prod([at(size, probe) for size in shape], dtype=np.float64))


def _owners(graph: ir.Graph) -> dict[ir.Node, ir.Node]:
    """Every node in a body -> the node of the main graph that holds it."""
    return {inner: node for node in graph for body in bodies_of(node) for inner in body.all_nodes()}


def _fed(graph: ir.Graph) -> set[ir.Value]:
    """What depends on the inputs."""
    fed = {value for value in graph.inputs if not value.is_initializer()}
    for node in graph:
        if any(value in fed for value in reads(node)):
            fed.update(node.outputs)
    return fed


def _behind(node: ir.Node, fed: set[ir.Value]) -> Iterator[ir.Value]:
    """The node's outputs, or of the first nodes behind it that read the inputs as well."""
    waiting, seen = [node], set[ir.Node]()
    while waiting:
        current = waiting.pop()
        if current in seen:
            continue
        seen.add(current)
        for value in current.outputs:
            if value in fed:
                yield value
            else:
                waiting += [use.node for use in value.uses()]
