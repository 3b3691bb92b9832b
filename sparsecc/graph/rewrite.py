"""Physical removal: slice constants by the masks of their axes, then let each rule mend its node's sizes."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from sparsecc.axes.algebra import Axis, Keep, atoms_of, mask
from sparsecc.axes.sizes import is_static
from sparsecc.graph.analysis import Analysis
from sparsecc.rules import Trait, rule_for, traits_of
from sparsecc.rules.edit import Edit, new_constant
from sparsecc.system.gc_pause import collector_paused
from sparsecc.system.memory import HELD

Use = tuple[ir.Node, int]


@dataclass(frozen=True)
class Cut:
    """A constant of the pruned graph, what it was cut from, and which slots are left: axis -> indices."""

    value: ir.Value
    dense: ir.TensorProtocol
    slots: Mapping[int, np.ndarray]


@collector_paused()
def remove(analysis: Analysis, keep: Keep) -> list[Cut]:
    """Edit the analysed model in place so that only the kept slots are left; the analysis is spent then. What was cut.

    `keep` holds a boolean array per free atom. Shape arithmetic keeps computing the sizes of the dense model;
    every operand that really is a shape is corrected where it is read.
    """
    keep = {atom: slots for atom, slots in keep.items() if not slots.all()}
    kept = {atom: int(slots.sum()) for atom, slots in keep.items()}
    graph = analysis.model.graph
    nodes = list(graph.all_nodes())
    cuts = _slice_constants(analysis, keep)
    for node in nodes:
        found = rule_for(node.domain, node.op_type)
        if found is not None and found.fix is not None and node not in analysis.record.unfollowed:
            edit = Edit(node, analysis.record, analysis.shapes, keep, kept, analysis.version, graph)
            found.fix(edit)
    taken = {node.name for node in nodes}
    for node in nodes:
        if traits_of(node) & Trait.COUNTS:
            edit = Edit(node, analysis.record, analysis.shapes, keep, kept, analysis.version, graph)
            _keep_dense_sizes(edit, taken)
    _forget_shapes(analysis, _changed_io(analysis, keep))
    return cuts


def _changed_io(analysis: Analysis, keep: Keep) -> dict[ir.Value, ir.Shape]:
    """New shapes of inputs and outputs that lost slots: of bodies, and of the model where it was asked for."""
    changed: dict[ir.Value, ir.Shape] = {}
    graph = analysis.model.graph
    inside = [value for body in graph.subgraphs() for value in (*body.inputs, *body.outputs)]
    for value in (*graph.inputs, *graph.outputs, *inside):
        axes = analysis.record.axes.get(value)
        if axes is None or value.shape is None or not any(_lost(a, keep) for a in axes):
            continue
        dims: list[int | ir.SymbolicDim | None] = list(value.shape)
        for i, axis in enumerate(axes):
            if _lost(axis, keep):
                dims[i] = int(_mask(axis, keep).sum()) if is_static(axis.size) else None
        changed[value] = ir.Shape(dims)
    return changed


def _slice_constants(analysis: Analysis, keep: Keep) -> list[Cut]:
    cuts = []
    for value, uses in _uses_of_initializers(analysis).items():
        signatures: dict[tuple[bytes | None, ...], list[Use]] = {}
        for use in uses:
            axes = analysis.record.uses.get(use, [])
            signatures.setdefault(_signature(axes, keep), []).append(use)
        shared = len(signatures) > 1 or value.is_graph_output()
        for signature, same in signatures.items():
            if not any(signature):
                continue
            axes = analysis.record.uses[same[0]]
            if not shared:
                cuts.append(_slice_in_place(value, axes, keep))
                continue
            tensor = value.const_value
            assert tensor is not None
            copy = new_constant(analysis.model.graph, value.name or "", np.zeros(0, dtype=np.float32))
            copy.const_value = tensor
            cuts.append(_slice_in_place(copy, axes, keep))
            for node, operand in same:
                node.replace_input_with(operand, copy)
        if shared and not value.uses() and not value.is_graph_output() and value.name is not None:
            _drop(analysis.model.graph, value)
    return cuts


def _drop(graph: ir.Graph, value: ir.Value) -> None:
    """Take out an initializer that nobody reads any more, also where the file lists it as an input."""
    graph.initializers.pop(value.name or "")
    if value.is_graph_input():
        graph.inputs.remove(value)


def _uses_of_initializers(analysis: Analysis) -> dict[ir.Value, list[Use]]:
    found: dict[ir.Value, list[Use]] = {}
    for value in analysis.model.graph.initializers.values():
        for use in value.uses():
            found.setdefault(value, []).append((use.node, use.idx))
    return found


def _signature(axes: list[Axis], keep: Keep) -> tuple[bytes | None, ...]:
    return tuple(_mask(a, keep).tobytes() if _lost(a, keep) else None for a in axes)


def _lost(axis: Axis, keep: Keep) -> bool:
    return any(atom in keep for atom in atoms_of(axis))


def _mask(axis: Axis, keep: Keep) -> np.ndarray:
    found = mask(axis, keep)
    assert found is not None
    return found


def _slice_in_place(value: ir.Value, axes: list[Axis], keep: Keep) -> Cut:
    tensor = value.const_value
    assert tensor is not None
    indices = {i: np.flatnonzero(_mask(a, keep)) for i, a in enumerate(axes) if _lost(a, keep)}
    shape = ir.Shape([len(indices[i]) if i in indices else int(d) for i, d in enumerate(tensor.shape)])  # type: ignore[arg-type]

    def sliced() -> ir.TensorProtocol:
        array = tensor.numpy()
        for axis, index in indices.items():
            array = np.take(array, index, axis=axis)
        return ir.Tensor(np.ascontiguousarray(array), dtype=tensor.dtype, name=value.name)

    if tensor.nbytes > HELD:
        value.const_value = ir.LazyTensor(sliced, dtype=tensor.dtype, shape=shape, name=value.name)
    else:
        value.const_value = sliced()
    value.shape = shape
    value.type = ir.TensorType(tensor.dtype)
    return Cut(value, tensor, indices)


def _keep_dense_sizes(edit: Edit, taken: Container[str | None]) -> None:
    """What Shape and Size report stays what they reported in the dense model. Names that are `taken` are those of
    a removal before this one."""
    node, data = edit.node, edit.node.inputs[0]
    known = data is not None and (data in edit.record.axes or (node, 0) in edit.record.uses)
    axes = edit.axes(0) if known else []
    readers = list(node.outputs[0].uses())
    if not any(edit.changed(a) for a in axes):
        return
    dense, left = edit.ratios(axes, [edit.changed(a) for a in axes])
    if node.op_type == "Size":
        dense, left = np.asarray(dense.prod()), np.asarray(left.prod())
    else:
        reported = slice(node.attributes.get_int("start", 0), node.attributes.get_int("end", len(axes)))
        dense, left = dense[reported], left[reported]
    if (dense == left).all():
        return
    found = node.outputs[0]
    suffix = ".dense"
    while f"{node.name}{suffix}" in taken:
        suffix += ".dense"
    anchor = ir.node("Identity", [found], name=f"{node.name}{suffix}")
    anchor.outputs[0].name = f"{found.name}{suffix}"
    assert isinstance(node.graph, ir.Graph)
    node.graph.insert_after(node, anchor)
    at_anchor = Edit(anchor, edit.record, edit.shapes, edit.keep, edit.kept, edit.version, edit.graph)
    anchor.replace_input_with(0, at_anchor.rescaled(found, divisor=left, multiplier=dense))
    for use in readers:
        use.node.replace_input_with(use.idx, anchor.outputs[0])
    for place, value in enumerate(node.graph.outputs):
        if value is found:
            _hand_on(found, anchor.outputs[0], node.graph, place)


def _hand_on(old: ir.Value, new: ir.Value, graph: ir.Graph, place: int) -> None:
    """An output of a graph becomes another value under the same name."""
    old.name, new.name = f"{old.name}.left", old.name
    new.type, new.shape = old.type, old.shape
    graph.outputs[place] = new


def _forget_shapes(analysis: Analysis, changed: dict[ir.Value, ir.Shape]) -> None:
    """Recorded shapes of inner values are stale now; runtimes infer them."""
    graph = analysis.model.graph
    outside = set(graph.inputs) | set(graph.outputs) | set(graph.initializers.values())
    outside |= {value for body in graph.subgraphs() for value in body.outputs}  # a Scan needs their shapes
    for node in graph.all_nodes():
        for value in node.outputs:
            if value not in outside:
                value.shape = None
    for value, shape in changed.items():
        value.shape = shape
