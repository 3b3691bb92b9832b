"""Operators that rearrange slots: reshapes, transposes, cuts and joins."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sparsecc.axes.algebra import Atom, Axis, cat, mul
from sparsecc.axes.sizes import Size, at, product, quotient, smaller
from sparsecc.rules.edit import Edit
from sparsecc.rules.site import SPATIAL, CannotFollowError, Site, broadcast
from sparsecc.rules.table import rule
from sparsecc.rules.traits import MOVED, MOVED_WHOLE, Trait


def mend_target(edit: Edit) -> None:
    """The target shape of Reshape or Expand follows the axes of the output."""
    axes = edit.out_axes()
    if edit.node.op_type == "Expand":
        axes = axes[len(axes) - len(edit.elements(1) or axes) :]
    edit.set_shape_operand(1, axes)


@rule("Reshape", fix=mend_target, traits=MOVED_WHOLE)
def reshape(site: Site) -> None:
    """Row-major: a run of axes is the product of the run it becomes."""
    site.set(reshaped(site, site.axes(0), site.out_shape()))


def reshaped(site: Site, axes: Sequence[Axis], shape: Sequence[Size]) -> list[Axis]:
    """The axes of `shape`, whose product is that of `axes`, related run by run."""
    if any(a.size == 0 for a in axes) or 0 in shape:
        raise CannotFollowError("an axis is empty")
    result: list[Axis] = []
    source = [a for a in axes if a.size != 1][::-1]
    target = [s for s in shape if s != 1][::-1]
    made: list[Axis] = []
    while source and target:
        ins, outs = [source.pop()], [Atom(target.pop())]
        _balance(ins, outs, source, target)
        if len(ins) == len(outs) == 1:
            made.append(ins[0])
            continue
        whole = ins[0] if len(ins) == 1 else mul(ins)
        site.space.unify(whole, mul(outs))
        made.extend(outs)
    if source or target:
        raise CannotFollowError("the product of its sizes changes")
    rest = iter(made)
    for size in shape:
        result.append(Atom(1) if size == 1 else next(rest))
    return result


def _balance(ins: list[Axis], outs: list[Atom], source: list[Axis], target: list[Size]) -> None:
    """Extend the shorter side until both products are equal."""
    while True:
        a, b = product(i.size for i in ins), product(o.size for o in outs)
        if a == b:
            return
        if at(a, 0) < at(b, 0) or (at(a, 0) == at(b, 0) and smaller(at(a, -1), at(b, -1))):
            if not source:
                raise CannotFollowError("the product of its sizes changes")
            ins.append(source.pop())
        else:
            if not target:
                raise CannotFollowError("the product of its sizes changes")
            outs.append(Atom(target.pop()))


@rule("Flatten", traits=MOVED_WHOLE)
def flatten(site: Site) -> None:
    """Two products: the axes before `axis`, and the rest."""
    site.set(reshaped(site, site.axes(0), site.out_shape()))


@rule("Transpose", traits=MOVED_WHOLE)
def transpose(site: Site) -> None:
    """The axes in another order."""
    axes = site.axes(0)
    order = site.ints("perm") or list(range(len(axes)))[::-1]
    site.set([axes[i] for i in order])


@rule("Squeeze", traits=MOVED_WHOLE)
def squeeze(site: Site) -> None:
    """Axes of size 1 vanish."""
    axes = site.axes(0)
    given = site.axis_list(1)
    gone = {i for i, a in enumerate(axes) if a.size == 1} if given is None else {i % len(axes) for i in given}
    site.set([a for i, a in enumerate(axes) if i not in gone])


@rule("Unsqueeze", traits=MOVED_WHOLE)
def unsqueeze(site: Site) -> None:
    """New axes of size 1."""
    axes = site.axes(0)
    given = site.axis_list(1) or []
    rank = len(axes) + len(given)
    new = {i % rank for i in given}
    rest = iter(axes)
    site.set([Atom(1) if i in new else next(rest) for i in range(rank)])


@rule("Expand", fix=mend_target, traits=MOVED)
def expand(site: Site) -> None:
    """Axes of size 1 are repeated: fresh slots, free until something else says more."""
    repeated: list[Axis] = [Atom(size) for size in site.out_shape()]
    site.set(broadcast(site, [site.axes(0), repeated]))


def mend_constant_of_shape(edit: Edit) -> None:
    """The shape follows the axes of the output."""
    edit.set_shape_operand(0, edit.out_axes())


@rule("ConstantOfShape", fix=mend_constant_of_shape)
def constant_of_shape(site: Site) -> None:
    """Equal values everywhere: fresh slots, free until something else says more."""
    site.set([Atom(size) for size in site.out_shape()])


@rule("Shape Size", traits=Trait.COUNTS)
def shape_of(site: Site) -> None:
    """Reads sizes, not slots. Rewriting keeps the sizes it reports those of the dense model."""
    site.ignore(0)
    site.set([site.fixed(s, "the rank") for s in site.out_shape()])


@rule("Concat", traits=Trait.ADDS)
def concat(site: Site) -> None:
    """Side by side along one axis; the others are the same."""
    operands = [site.axes(i) for i in range(len(site.node.inputs)) if site.has(i)]
    site.set(joined(site, operands, site.axis()))


def joined(site: Site, operands: Sequence[list[Axis]], axis: int) -> list[Axis]:
    """The axes of operands put side by side along one of them."""
    result = list(operands[0])
    for other in operands[1:]:
        for i, (a, b) in enumerate(zip(result, other, strict=True)):
            if i != axis:
                result[i] = site.same(a, b)
    result[axis] = cat([axes[axis] for axes in operands if axes[axis].size != 0])
    return result


def mend_split(edit: Edit) -> None:
    """The sizes of the pieces follow their axes."""
    axis = edit.memo
    pieces = [edit.out_axes(i)[axis] for i in range(len(edit.node.outputs))]
    if not any(edit.changed(p) for p in pieces):
        return
    sizes = [edit.left(p) for p in pieces]
    if edit.version < 13:
        edit.set_attribute("split", sizes)
        return
    edit.node.attributes.pop("num_outputs", None)
    if len(edit.node.inputs) < 2:
        edit.node.resize_inputs(2)
    edit.set_constant(1, np.asarray(sizes, dtype=np.int64))


@rule("Split", fix=mend_split, traits=MOVED)
def split(site: Site) -> None:
    """Consecutive pieces of one axis."""
    follow_pieces(site, site.axis())


def follow_pieces(site: Site, axis: int) -> None:
    """One axis cut into as many pieces as there are outputs; the axis is remembered."""
    axes = site.axes(0)
    sizes = [site.out_shape(i)[axis] for i in range(site.outputs())]
    pieces = site.space.pieces(axes[axis], sizes)
    if pieces is None:
        raise CannotFollowError(f"axis {axis} cannot be cut into {sizes}")
    site.remember(axis)
    for output, piece in enumerate(pieces):
        site.set([*axes[:axis], piece, *axes[axis + 1 :]], output)


def mend_tile(edit: Edit) -> None:
    """The number of repeats follows the repeated axis."""
    edit.set_shape_operand(1, edit.memo)


@rule("Tile", fix=mend_tile, traits=MOVED)
def tile(site: Site) -> None:
    """Repeats: the product of a fresh axis and the old one."""
    follow_repeats(site, site.axes(0))


def follow_repeats(site: Site, axes: Sequence[Axis]) -> None:
    """The axes one after the other as often as the output says: copies are slots of their own, and may go as well."""
    copies: list[Axis] = [copies_of(axis, size) for axis, size in zip(axes, site.out_shape(), strict=True)]
    site.remember(copies)
    site.set([mul((c, a)) if a.size != 1 else c for c, a in zip(copies, axes, strict=True)])


def copies_of(axis: Axis, size: Size) -> Axis:
    """A fresh axis of as many slots as an axis is repeated to get this size."""
    times = quotient(size, axis.size)
    if times is None:
        raise CannotFollowError("its repeats are unknown")
    return Atom(times)


def mend_pad(edit: Edit) -> None:
    """The amounts of padding follow the padded slots."""
    rank, padded = edit.memo
    if not any(edit.changed(a) for pair in padded.values() for a in pair):
        return
    amounts = edit.node.attributes.get_ints("pads") if edit.version < 11 else edit.elements(1)
    assert amounts is not None, "padding of a changed axis is static"
    new = [at(a, 0) for a in amounts]
    half = len(new) // 2
    order = list(padded)
    for position, axis in enumerate(order):
        before, after = padded[axis]
        slot = axis if half == rank else position
        new[slot], new[slot + half] = edit.left(before), edit.left(after)
    if edit.version < 11:
        edit.set_attribute("pads", new)
    else:
        edit.set_constant(1, np.asarray(new, dtype=np.int64))


@rule("Pad", fix=mend_pad, traits=Trait.KEEPS_ZEROS)
def pad(site: Site) -> None:
    """Constant padding adds fresh slots at the ends; other modes and run-time amounts pin what they touch."""
    axes, shape = site.axes(0), site.out_shape()
    rank = len(axes)
    amounts = site.ints("pads") or site.ints("paddings") or site.elements(1)
    chosen = site.axis_list(3) if site.has(3) else list(range(rank))
    result, padded = list(axes), {}
    for position, axis in enumerate(i % rank for i in chosen or []):
        pair = None if amounts is None else (amounts[position], amounts[position + len(chosen or [])])
        padded[axis], result[axis] = _padded(site, axes[axis], shape[axis], pair)
    site.remember((rank, padded))
    site.set(result)


def _padded(
    site: Site, axis: Axis, size: Size, amounts: tuple[Size, Size] | None
) -> tuple[tuple[Axis, Axis], Axis]:
    nothing = (Atom(0), Atom(0))
    if amounts == (0, 0) or (amounts is None and size == axis.size):
        return nothing, axis
    static = amounts is not None and all(isinstance(a, int) and a >= 0 for a in amounts)
    if not static or site.string("mode", "constant") != "constant":
        site.pin(axis, "the padded axis")
        return nothing, site.fixed(size, "the padded axis")
    assert amounts is not None
    ends = (Atom(amounts[0]), Atom(amounts[1]))
    return ends, cat([e for e in (ends[0], axis, ends[1]) if e.size != 0])


@rule("DepthToSpace", traits=MOVED_WHOLE)
def depth_to_space(site: Site) -> None:
    """Channels are block*block*C (DCR) or C*block*block (CRD); the blocks stay."""
    data, block = site.axes(0), site.int_("blocksize", 1)
    depth = quotient(data[1].size, block * block)
    if depth is None:
        raise CannotFollowError("its channels are not a multiple of the block")
    crd = site.string("mode", "DCR") == "CRD"
    wanted = (depth, block, block) if crd else (block, block, depth)
    found = site.space.factored(data[1], wanted)
    if found is None:
        raise CannotFollowError("its channels cannot be seen as blocks")
    channel = found.pop(0 if crd else 2)
    site.pin(found, "a block")
    site.pin(data[2:], SPATIAL)
    site.set([data[0], channel, *(site.fixed(s, SPATIAL) for s in site.out_shape()[2:])])


@rule("SpaceToDepth", traits=MOVED_WHOLE)
def space_to_depth(site: Site) -> None:
    """Channels become block*block*C."""
    data, block = site.axes(0), site.int_("blocksize", 1)
    site.pin(data[2:], SPATIAL)
    blocks = [site.fixed(block, "a block") for _ in range(2)]
    spatial = [site.fixed(s, SPATIAL) for s in site.out_shape()[2:]]
    site.set([data[0], mul((*blocks, data[1])), *spatial])


def mend_resize(edit: Edit) -> None:
    """Target sizes include the channels."""
    if edit.version >= 11 and edit.has(3) and len(edit.elements(3) or []) == len(edit.out_axes()):
        edit.set_shape_operand(3, edit.out_axes())


@rule("Resize Upsample", fix=mend_resize, traits=Trait.KEEPS_ZEROS)
def resize(site: Site) -> None:
    """Axes whose size changes are fixed; the others pass."""
    data = site.axes(0)
    result = []
    for position, (axis, size) in enumerate(zip(data, site.out_shape(), strict=True)):
        if axis.size == size and position < 2:
            result.append(axis)
            continue
        site.pin(axis, SPATIAL)
        result.append(site.fixed(size, SPATIAL))
    site.set(result)
