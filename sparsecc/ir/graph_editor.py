"""Edits of a graph that quantization needs: fresh names, constants, nodes at a place, and a tidy end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common as ir_passes

from sparsecc.ir.mapped import Spool

BORDER = "sparsecc.handed_on"
"""What the Identity is marked with whose output one file of a package gives and others take (`loading/chain.py`)."""


class GraphEditor:
    """Adds constants to the main graph of `model`, and nodes to it or to the body of the node beside which they stand,
    under names that are free; large constants wait on the `spool` where there is one."""

    def __init__(self, model: ir.Model, spool: Spool | None = None) -> None:
        self.model = model
        self.spool = spool
        self.graph = model.graph
        self._zeros: dict[tuple[tuple[int, ...], np.dtype], ir.Value] = {}
        self._names: set[str] = set(self.graph.initializers)
        self._names.update(value.name or "" for value in self.graph.inputs)
        for node in ir.traversal.RecursiveGraphIterator(self.graph):
            self._names.add(node.name or "")
            self._names.update(output.name or "" for output in node.outputs)

    def fresh(self, base: str) -> str:
        """A name that nothing in the graph has: `base`, or `base` with a number."""
        name, number = base, 0
        while name in self._names:
            number += 1
            name = f"{base}_{number}"
        self._names.add(name)
        return name

    def constant(self, base: str, array: np.ndarray | ir.TensorProtocol) -> ir.Value:
        """A new initializer."""
        name = self.fresh(base)
        tensor: ir.TensorProtocol
        if isinstance(array, np.ndarray | np.generic):
            tensor = ir.tensor(np.array(array, order="C"), name=name)
        else:
            tensor = array
        tensor.name = name
        if self.spool is not None:
            tensor = self.spool.keep(tensor)
        value = ir.Value(
            name=name,
            shape=ir.Shape(tensor.shape.numpy()),
            type=ir.TensorType(tensor.dtype),
            const_value=tensor,
        )
        self.graph.register_initializer(value)
        return value

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> ir.Value:
        """An initializer of zeros, one for all who ask for the same."""
        key = shape, np.dtype(dtype)
        if key not in self._zeros:
            self._zeros[key] = self.constant(
                "_".join(["zeros", key[1].name, *map(str, shape)]), np.zeros(*key)
            )
        return self._zeros[key]

    def add(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, Any] | None = None,
        *,
        base: str,
        before: ir.Node | None = None,
        after: ir.Node | None = None,
        domain: str = "",
        dtype: ir.DataType | None = None,
        like: ir.Value | None = None,
    ) -> ir.Value:
        """A new node with one output, placed beside a node (at the graph's start when neither is given).

        `like` gives the output its shape, `dtype` its type.
        """
        name = self.fresh(base)
        output = ir.Value(
            name=name,
            shape=like.shape.copy() if like is not None and like.shape is not None else None,
            type=ir.TensorType(dtype) if dtype is not None else None,
        )
        node = ir.node(op_type, inputs, attributes, domain=domain, outputs=[output], name=name)
        if before is not None:
            graph_of(before).insert_before(before, node)
        elif after is not None:
            graph_of(after).insert_after(after, node)
        elif len(self.graph):
            self.graph.insert_before(self.graph.node(0), node)
        else:
            self.graph.append(node)
        if domain:
            self.model.opset_imports.setdefault(domain, 1)
        return output

    def add_behind(
        self, value: ir.Value, op_type: str, inputs: Sequence[ir.Value | None], **options: Any
    ) -> ir.Value:
        """`add`, right behind the producer of `value` (at the graph's start for an input, which a body's may be)."""
        body = value.graph if value.producer() is None and value.is_graph_input() else None
        if isinstance(body, ir.Graph) and body is not self.graph and len(body):
            return self.add(op_type, inputs, before=body.node(0), **options)
        return self.add(op_type, inputs, after=value.producer(), **options)

    def replace_output(self, old: ir.Value, new: ir.Value) -> None:
        """Let `new` be the graph output that `old` was, under the same name."""
        graph = old.graph if isinstance(old.graph, ir.Graph) else self.graph
        for index, output in enumerate(graph.outputs):
            if output is old:
                graph.outputs[index] = new
        name = old.name or ""
        old.name = self.fresh(f"{name}_float")
        new.name = name
        new.type, new.shape = old.type, old.shape

    def replace_value(self, old: ir.Value, new: ir.Value) -> None:
        """Let everything that reads `old`, the graph's outputs too, read `new`."""
        if old.is_graph_output():
            self.replace_output(old, new)
        old.replace_all_uses_with(new)

    def stand_in(self, old: ir.Value, new: ir.Value) -> None:
        """Let `new`, which a kernel of another type gives, be what `old` was, under its name."""
        is_output, name = old.is_graph_output(), old.name
        self.replace_value(old, new)
        if not is_output:
            old.name, new.name = self.fresh(f"{name}_float"), name

    def finish(self) -> None:
        """Drop what nothing uses any more and sort the nodes."""
        ir_passes.RemoveUnusedNodesPass()(self.model)
        self.graph.sort()


def graph_of(node: ir.Node) -> ir.Graph:
    """The graph that a node stands in."""
    assert isinstance(node.graph, ir.Graph)
    return node.graph


def prepare(model: ir.Model) -> None:
    """Constants become initializers that callers cannot override, and every node gets a name.

    Identity nodes go: exporters write one for every bias that equals another, and no kernel takes those.
    """
    ir_passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    drop_identities(model)
    ir_passes.RemoveInitializersFromInputsPass()(model)
    inner = [node for body in model.graph.subgraphs() for node in body]
    taken = {node.name for node in (*model.graph, *inner) if node.name}
    for index, node in enumerate([*model.graph, *inner]):
        if not node.name:
            name = f"{node.op_type}_{index}"
            while name in taken:
                name += "_"
            taken.add(name)
            node.name = name


def drop_identities(model: ir.Model) -> None:
    """Take out Identity nodes, in bodies too, but for those that keep two outputs of a graph apart, or hand on an
    input, a constant or a value from around a body: an output is a value of its own, made where it is given. Those
    between the files of a package stay."""
    for node in list(model.graph.all_nodes()):
        if node.op_type != "Identity" or node.domain or BORDER in node.metadata_props:
            continue
        source, result = node.inputs[0], node.outputs[0]
        assert source is not None
        made_here = source.producer() is not None and source.graph is node.graph
        if result.is_graph_output() and (source.is_graph_output() or not made_here):
            continue
        if source.type is None:
            source.type = result.type
        name, is_output = result.name, result.is_graph_output()
        result.replace_all_uses_with(source, replace_graph_outputs=True)
        assert isinstance(node.graph, ir.Graph)
        node.graph.remove(node, safe=True)
        if is_output:
            source.name, source.shape = name, result.shape or source.shape
