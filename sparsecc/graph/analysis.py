"""One walk over a model that gives every dimension its axis, and from there the groups."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import onnx_ir as ir

from sparsecc.axes.algebra import Atom, Axis, Cat, Space, atoms_of, parts_of, resolve
from sparsecc.axes.sizes import at, is_static, is_unknown
from sparsecc.graph.caches import Cache, cache_sizes, caches, relate, relate_crosses
from sparsecc.graph.coordinates import pin_coordinates
from sparsecc.graph.patterns import matches
from sparsecc.graph.single_slots import gather_single_slots
from sparsecc.graph.slot_indices import pass_on, pin_numbered, settle
from sparsecc.ir.subgraphs import bodies_of, has_body, reads
from sparsecc.rules import reason_for_pin, rule_for, shapes_of, traits_of
from sparsecc.rules.site import CannotFollowError, Record, Site
from sparsecc.shapes.candidates import Dims
from sparsecc.shapes.infer import Runs, Shapes, infer
from sparsecc.system.gc_pause import collector_paused

Member = tuple[str, int]
"""(initializer, axis)"""


@dataclass
class Analysis:
    """A model with axes on every dimension. Valid as long as the model is not edited."""

    model: ir.Model
    shapes: Shapes
    space: Space
    record: Record

    @property
    def version(self) -> int:
        return self.model.opset_imports.get("", 1)

    def weights(self) -> Iterable[tuple[ir.Value, list[Axis]]]:
        """Every use of an initializer whose slots take part, with the axes of that use."""
        for (node, operand), axes in self.record.uses.items():
            value = node.inputs[operand]
            assert value is not None
            yield value, axes


def analyse(
    model: ir.Model,
    dims: Dims | None = None,
    *,
    prune_io: Sequence[str] = (),
    runs: Runs | None = None,
    sample: Dims | None = None,
    known: Sequence[dict[str, tuple[int, ...]]] = (),
) -> Analysis:
    """Give every dimension of a (normalised) model its axis. `runs` tells at which input sizes it works.

    `dims` fixes the sizes of inputs; `sample` gives those of one of the user's samples, to be tried first, after those
    `known` to work. `prune_io` are patterns of the inputs and outputs that may lose slots; caches may without being
    named.
    """
    with collector_paused():
        found = caches(model)
        likely = [[*known]] if known else [*cache_sizes(model, found)] if found and not dims else []
        return _analysed(model, infer(model, shapes_of, dims, runs, sample, likely), prune_io, found)


def _analysed(model: ir.Model, shapes: Shapes, prune_io: Sequence[str], found: Sequence[Cache]) -> Analysis:
    analysis = Analysis(model, shapes, Space(), Record())
    if not shapes.works:  # such a model is refused: its shapes are a guess
        return analysis
    shapes.forget_false(model.graph)
    kept = {value for cache in found for value in (cache.past, cache.present)}
    graph = model.graph
    free = {v for v in (*graph.inputs, *graph.outputs) if v in kept or _is_named(v, prune_io)}
    enter_inputs(analysis, free)
    _follow_all(analysis, graph)
    relate(found, analysis.space, analysis.record)
    relate_crosses(model, analysis.space, analysis.record)
    leave_outputs(analysis, free)
    settle(analysis.space, analysis.record)
    pin_coordinates(model, analysis.space, analysis.record)
    _tie_shared_weights(analysis)
    pin_parts_of_dynamic_axes(analysis)
    _pin_unknown_sums(analysis)
    gather_single_slots(analysis.record)
    return analysis


def _is_named(value: ir.Value, patterns: Sequence[str]) -> bool:
    return any(matches(value.name or "", pattern) for pattern in patterns)


def enter_inputs(analysis: Analysis, free: Container[ir.Value] = ()) -> None:
    """Axes of the graph inputs, pinned; of the `free` ones the batch axis alone, and what is dynamic."""
    graph, record = analysis.model.graph, analysis.record
    record.constant.update(graph.initializers.values())
    for value in graph.inputs:
        if value.is_initializer():
            continue
        shape = analysis.shapes.of(value)
        if shape is not None:
            record.axes[value] = [Atom(size) for size in shape]
            for axis in _fixed(record.axes[value], value in free):
                analysis.space.pin(axis, f"graph input '{value.name}'")


def leave_outputs(analysis: Analysis, free: Container[ir.Value] = ()) -> None:
    """Pin what reaches a graph output; of the `free` ones the batch axis alone, and what is dynamic."""
    for value in analysis.model.graph.outputs:
        analysis.space.cause = value
        axes = analysis.record.axes.get(value, [])
        for axis in _fixed(axes, value in free):
            analysis.space.pin(axis, f"graph output '{value.name}'")
        pin_numbered(analysis.space, analysis.record, [value], "graph output")


def _fixed(axes: list[Axis], is_free: bool) -> list[Axis]:
    """What stays: of a free input or output the batch, and what has another size at every run."""
    return [a for i, a in enumerate(axes) if not is_free or i == 0 or not is_static(a.size)]


def _follow_all(analysis: Analysis, graph: ir.Graph) -> None:
    for node in graph:
        _follow(analysis, node)


def _follow_body(analysis: Analysis, body: ir.Graph) -> None:
    """What the rule of a node with bodies asks for. Slot numbers mean nothing outside the body."""
    _follow_all(analysis, body)
    pin_numbered(analysis.space, analysis.record, body.outputs, "body output")


def _follow(analysis: Analysis, node: ir.Node) -> None:
    record, space = analysis.record, analysis.space
    space.cause = node
    site = Site(node, space, analysis.shapes, record, analysis.version, partial(_follow_body, analysis))
    found = rule_for(node.domain, node.op_type)
    try:
        if found is None:
            raise CannotFollowError(reason_for_pin(node.domain, node.op_type))
        found.follow(site)
    except (CannotFollowError, *_MISFITS) as stop:
        known = isinstance(stop, CannotFollowError)
        reason = str(stop) if known else "its operands are not of the ranks it expects"
        pin_all(analysis, site, f"{site.title}: {reason}")
        record.unfollowed[node] = reason
    pin_unclaimed(analysis, site)
    pass_on(site, traits_of(node))
    if node.inputs and not has_body(node) and all(v is None or v in record.constant for v in node.inputs):
        record.constant.update(node.outputs)


_MISFITS = (ArithmeticError, IndexError, KeyError, StopIteration, ValueError)
"""What a rule meets where the shapes in a file are wrong: an axis that is not there, unequal ranks."""


def pin_all(analysis: Analysis, site: Site, reason: str) -> None:
    """The node is not followed: nothing that it or its bodies touch may change."""
    inside = [inner for body in bodies_of(site.node) for inner in body.all_nodes()]
    for node in (site.node, *inside):
        _pin_operands(analysis, node, reason)
        analysis.record.macs.pop(node, None)
        analysis.record.memos.pop(node, None)
    untouched = {site.node, *inside}
    analysis.record.reductions[:] = [r for r in analysis.record.reductions if r.node not in untouched]
    analysis.record.unfollowed.update(dict.fromkeys(inside, reason))
    for value in reads(site.node):
        for axis in (*analysis.record.axes.get(value, []), *_numbered(analysis, value)):
            analysis.space.pin(axis, reason)
    for value in site.node.outputs:
        shape = analysis.shapes.of(value)
        if shape is not None:
            analysis.record.axes[value] = [Atom(size) for size in shape]
            for axis in analysis.record.axes[value]:
                analysis.space.pin(axis, reason)


def _numbered(analysis: Analysis, value: ir.Value) -> list[Axis]:
    """The axis whose slots a value holds numbers of."""
    return [analysis.record.numbers[value]] if value in analysis.record.numbers else []


def _pin_operands(analysis: Analysis, node: ir.Node, reason: str) -> None:
    for operand, value in enumerate(node.inputs):
        if value is None:
            continue
        axes = analysis.record.uses.get((node, operand)) or analysis.record.axes.get(value, [])
        for axis in axes:
            analysis.space.pin(axis, reason)


def pin_unclaimed(analysis: Analysis, site: Site) -> None:
    """An operand the rule did not look at is read as a whole."""
    for operand, value in enumerate(site.node.inputs):
        if value is None or operand in site.claimed or value.is_initializer():
            continue
        for axis in analysis.record.axes.get(value, []):
            analysis.space.pin(axis, f"operand {operand} of {site.title}")


SHARED_ELEMENTS = 1024


def _tie_shared_weights(analysis: Analysis) -> None:
    """A matrix read by several nodes (a shared layer) loses the same slots for all, and stays one.

    Small or one-dimensional constants are not tied: exporters store equal biases and scales once.
    """
    uses: dict[ir.Value, list[list[Axis]]] = {}
    for value, axes in analysis.weights():
        tensor = value.const_value
        if tensor is not None and len(axes) > 1 and tensor.size >= SHARED_ELEMENTS:
            uses.setdefault(value, []).append(axes)
    for value, (first, *others) in uses.items():
        analysis.space.cause = value
        for axes in others:
            for a, b in zip(first, axes, strict=True):
                analysis.space.unify(a, b)


def pin_parts_of_dynamic_axes(analysis: Analysis) -> None:
    """A static part beside a dynamic one stays: the sum of their sizes is only known at run time."""
    for axes in analysis.record.axes.values():
        for axis in axes:
            if is_static(axis.size):
                continue
            for part in _static_parts(axis):
                analysis.space.pin(part, "it lies beside a dynamic part of its axis")


def _pin_unknown_sums(analysis: Analysis) -> None:
    """What is summed over together with slots that nobody can count stays: no mask can be made for it."""
    for reduction in analysis.record.reductions:
        value = reduction.node.inputs[reduction.operand]
        axes = analysis.record.axes.get(value, []) if value is not None else []
        for position in reduction.positions if axes else ():
            if is_unknown(axes[position].size):
                analysis.space.cause = reduction.node
                analysis.space.pin(axes[position], "it is summed with as many others as the data says")


def _static_parts(axis: Axis) -> list[Axis]:
    found: list[Axis] = []
    stack = [axis]
    while stack:
        top = resolve(stack.pop())
        if isinstance(top, Cat) and not is_static(top.size):
            found.extend(p for p in parts_of(top) if is_static(p.size))
            stack.extend(p for p in parts_of(top) if not is_static(p.size))
        elif not isinstance(top, Atom | Cat):
            stack.extend(getattr(top, "factors", ()))
    return found


def prunable_atoms(analysis: Analysis) -> dict[Atom, list[Member]]:
    """Every atom that owns slots of initializers, pinned or not, with its members."""
    owners: dict[Atom, dict[Member, None]] = {}
    for value, axes in analysis.weights():
        for position, axis in enumerate(axes):
            for atom in atoms_of(axis):
                if is_static(atom.size) and at(atom.size, 0) > 1:
                    owners.setdefault(atom, {})[value.name or "", position] = None
    return {atom: list(members) for atom, members in owners.items()}
