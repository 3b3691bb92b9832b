"""Operators with a body, and those that hold sequences or optionals.

A body's nodes are followed by the rules of all nodes. Its inputs have the axes of what the node hands in, and
the node's outputs have the axes of what the body hands out; the state of a loop is one from before the first
iteration to after the last.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from sparsecc.axes.algebra import Atom, Axis
from sparsecc.axes.sizes import Size, is_unknown
from sparsecc.ir.subgraphs import bodies_of
from sparsecc.rules.site import CannotFollowError, Site
from sparsecc.rules.table import pinned, rule

pinned("SequenceMap", "it maps a body over a sequence of tensors")
pinned("Optional OptionalGetElement OptionalHasElement", "it holds an optional value")
pinned(
    """SequenceAt SequenceConstruct SequenceEmpty SequenceErase SequenceInsert SequenceLength SplitToSequence
    ConcatFromSequence""",
    "it holds a sequence of tensors",
)


@rule("If")
def branches(site: Site) -> None:
    """Both branches are followed; what they give is one value, and so the same slots."""
    _require_shapes(site)
    then, other = site.body("then_branch"), site.body("else_branch")
    for branch in (then, other):
        site.follow_body(branch)
    for number, results in enumerate(zip(then.outputs, other.outputs, strict=True)):
        _leave(site, number, [site.record.axes.get(v) for v in results])


@rule("Loop")
def loop(site: Site) -> None:
    """The state is one at every iteration; scan outputs are stacked along an axis of their own, which stays."""
    _require_shapes(site)
    body = site.body("body")
    carried = max(len(site.node.inputs) - 2, 0)
    site.ignore(0, 1)
    for value in body.inputs[:2]:
        _enter_fixed(site, value)
    before = [_state(site, 2 + i, inner) for i, inner in enumerate(body.inputs[2:])]
    site.follow_body(body)
    after = body.outputs[1 : 1 + carried]
    _close(site, before, after)
    trips = _trips(site, body)
    for number, inner in enumerate(body.outputs[1 + carried :], start=carried):
        _stack(site, number, inner, 0)
    _repeated(site, trips)


@rule("Scan")
def scan(site: Site) -> None:
    """The state is one at every iteration; scanned axes stay, and the others are those of the body's values."""
    _require_shapes(site)
    body, number = site.body("body"), site.int_("num_scan_inputs")
    carried = len(site.node.inputs) - number
    before = [_state(site, i, inner) for i, inner in enumerate(body.inputs[:carried])]
    length: Size = 1
    for i, inner in enumerate(body.inputs[carried:]):
        axes = list(site.axes(carried + i))
        scanned = axes.pop(site.nonnegative((site.ints("scan_input_axes") or [0] * number)[i], len(axes)))
        site.pin(scanned, "the scanned axis")
        length = scanned.size
        site.record.axes[inner] = axes
    site.follow_body(body)
    _close(site, before, body.outputs[:carried])
    made = body.outputs[carried:]
    for place, inner in enumerate(made):
        _stack(site, carried + place, inner, (site.ints("scan_output_axes") or [0] * len(made))[place])
    _repeated(site, length)


def _require_shapes(site: Site) -> None:
    """What shape inference could not do, no rule can."""
    for value in site.node.outputs:
        reason = site.shapes.failure(value)
        if reason is not None:
            raise CannotFollowError(reason)


def _enter_fixed(site: Site, value: ir.Value) -> None:
    site.record.axes[value] = [Atom(size) for size in site.shapes.of(value) or ()]


def _state(site: Site, operand: int, inner: ir.Value) -> list[Axis] | None:
    """The axes of one state: those it starts with, but for sizes that change from iteration to iteration.

    None where its shape is unknown; what it starts with stays then.
    """
    shape = site.shapes.of(inner)
    value = site.value(operand)
    if shape is None or site.shapes.of(value) is None:
        site.pin(site.record.axes.get(value, []), f"state '{inner.name}' has no known shape: it")
        return None
    axes: list[Axis] = []
    for position, (axis, size) in enumerate(zip(site.axes(operand), shape, strict=True)):
        if axis.size == size:
            axes.append(axis)
            continue
        reason = f"axis {position} of state '{inner.name}', whose size changes between iterations,"
        site.pin(axis, reason)
        axes.append(site.fixed(size, reason))
    site.record.axes[inner] = axes
    return axes


def _close(site: Site, before: Sequence[list[Axis] | None], after: Sequence[ir.Value]) -> None:
    """What an iteration leaves is what the next one starts with, and what the node gives at last."""
    for number, (start, inner) in enumerate(zip(before, after, strict=True)):
        _leave(site, number, [start, site.record.axes.get(inner)])


def _leave(site: Site, output: int, alternatives: Sequence[list[Axis] | None]) -> None:
    """An output is one of several values, which are the same axis by axis where their sizes are."""
    known = [axes for axes in alternatives if axes is not None]
    title = f"output {output}"
    shape = site.shapes.of(site.node.outputs[output])
    if shape is None or len(known) < len(alternatives) or any(len(axes) != len(shape) for axes in known):
        for axes in known:
            site.pin(axes, f"a value without a known shape reaches {title}: it")
        if shape is not None:
            site.set([site.fixed(size, title) for size in shape], output)
        return
    axes = []
    for position, (size, *same) in enumerate(zip(shape, *known, strict=True)):
        if all(a.size == size for a in same):
            for other in same[1:]:
                site.space.unify(same[0], other)
            axes.append(same[0])
            continue
        reason = f"axis {position} of {title}, whose size differs from run to run,"
        site.pin(same, reason)
        axes.append(site.fixed(size, reason))
    site.set(axes, output)


def _stack(site: Site, output: int, inner: ir.Value, axis: int) -> None:
    """One slot per iteration along a new axis, beside the axes of what an iteration gives."""
    axes = site.record.axes.get(inner)
    shape = site.out_shape(output)
    if axes is None:
        raise CannotFollowError(f"the axes of '{inner.name}' in its body are unknown")
    place = site.nonnegative(axis, len(shape))
    stacked = site.fixed(shape[place], "the iterations")
    site.set([*axes[:place], stacked, *axes[place:]], output)


def _trips(site: Site, body: ir.Graph) -> Size | None:
    """How often a Loop runs at the probes' input sizes, None where its condition or the data decides."""
    goes_on = [site.shapes.array(body.outputs[0])]
    if site.has(1):
        goes_on.append(site.array(1))
    limit = site.elements(0)
    if limit is None or len(limit) != 1 or any(c is None or not c.all() for c in goes_on):
        return None
    return None if is_unknown(limit[0]) else limit[0]


def _repeated(site: Site, trips: Size | None) -> None:
    """The bodies' products are done once per iteration; once where nobody knows how many there are."""
    if trips is None or is_unknown(trips):
        site.record.counted_once.append(site.node)
        return
    for body in bodies_of(site.node):
        for inner in body.all_nodes():
            for product in site.record.macs.get(inner, ()):
                product.append(Atom(trips))
