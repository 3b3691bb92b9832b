"""Operators that pick slots: Slice, Gather and their relatives."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sparsecc.axes import Atom, Axis
from sparsecc.rules.edit import Edit
from sparsecc.rules.site import CannotFollowError, Site
from sparsecc.rules.table import rule
from sparsecc.sizes import Size, at


@dataclass(frozen=True)
class Cut:
    """What a static pick of slots start, start+step, … of an axis leaves: `before`, then `picked`."""

    before: Axis
    picked: Axis
    step: int
    offset: int


def picked(site: Site, axis: Axis, start: int, stop: int, step: int) -> Cut | None:
    """The slots start:stop:step of a static axis as an expression, or None where the algebra has none."""
    size = axis.size
    assert isinstance(size, int)
    nothing = Atom(0)
    if step == 1:
        if start == 0 and stop == size:
            return Cut(nothing, axis, 1, 0)
        pieces = site.space.pieces(axis, [n for n in (start, stop - start, size - stop) if n > 0])
        if pieces is None or stop <= start:
            return None
        return Cut(pieces[0] if start else nothing, pieces[1 if start else 0], 1, 0)
    if step > 1 and size % step == 0 and start < step and stop > size - step + start:
        factors = site.space.factored(axis, (size // step, step))
        if factors is None:
            return None
        site.pin(factors[1], f"the stride {step}")
        return Cut(nothing, factors[0], step, start)
    return None


def _bounds(site: Site) -> dict[int, tuple[Size, Size, int]] | None:
    """Axis -> (start, end, step) as given; None where an axis or step is not static."""
    if site.version < 10:
        starts, ends = site.ints("starts") or [], site.ints("ends") or []
        axes, steps = site.ints("axes"), None
    else:
        starts, ends = site.elements(1), site.elements(2)
        axes, steps = site.axis_list(3), site.elements(4) if site.has(4) else None
    if starts is None or ends is None or any(not isinstance(s, int) for s in steps or []):
        return None
    rank = site.rank(0)
    chosen = axes if axes is not None else list(range(len(starts)))
    strides = [at(s, 0) for s in steps] if steps else [1] * len(starts)
    return {a % rank: (s, e, t) for a, s, e, t in zip(chosen, starts, ends, strides, strict=True)}


def mend_slice(edit: Edit) -> None:
    """Start and end follow the slots left before and inside the cut."""
    cuts: dict[int, Cut] = edit.memo or {}
    changed = {a: c for a, c in cuts.items() if edit.changed(c.before) or edit.changed(c.picked)}
    if not changed:
        return
    old = edit.version < 10
    starts = edit.node.attributes.get_ints("starts") if old else edit.elements(1)
    ends = edit.node.attributes.get_ints("ends") if old else edit.elements(2)
    given = edit.node.attributes.get_ints("axes") if old else edit.elements(3)
    assert starts is not None and ends is not None
    rank = len(edit.out_axes())
    order = [at(a, 0) % rank for a in given] if given else list(range(len(starts)))
    for operand, values in ((1, starts), (2, ends)):
        new = list(values)
        for axis, cut in changed.items():
            before = edit.left(cut.before)
            length = edit.left(cut.picked) * cut.step
            new[order.index(axis)] = before + (cut.offset if operand == 1 else length)
        _set_bounds(edit, operand, new)


def _set_bounds(edit: Edit, operand: int, values: list[Size]) -> None:
    if edit.version < 10:
        edit.set_attribute("starts" if operand == 1 else "ends", [at(v, 0) for v in values])
        return
    if all(isinstance(v, int) for v in values):
        edit.set_constant(operand, np.asarray(values, dtype=np.int64))
        return
    raise AssertionError(f"{edit.node.name} cuts a changed axis together with a dynamic one")


@rule("Slice", fix=mend_slice)
def slice_(site: Site) -> None:
    """Consecutive or strided slots. Cuts of dynamic extent pin their axis."""
    data, shape = site.axes(0), site.out_shape()
    bounds = _bounds(site)
    if bounds is None:
        bounds = {i: ((0, 1), (0, 1), 1) for i, (a, s) in enumerate(zip(data, shape, strict=True)) if a.size != s}
    result, cuts = list(data), {}
    for axis, (start, end, step) in bounds.items():
        cut = _cut(site, data[axis], start, end, step)
        if cut is not None and cut.picked.size == shape[axis]:
            cuts[axis] = cut
            result[axis] = cut.picked
        elif data[axis].size != shape[axis] or step != 1:
            site.pin(data[axis], "the cut axis")
            result[axis] = site.fixed(shape[axis], "the cut axis")
    if any(not isinstance(v, int) for s, e, _ in bounds.values() for v in (s, e)):
        site.pin([data[a] for a in cuts], "an axis cut together with a dynamic one")
    site.remember(cuts)
    site.set(result)


def _cut(site: Site, axis: Axis, start: Size, end: Size, step: int) -> Cut | None:
    if not (isinstance(axis.size, int) and isinstance(start, int) and isinstance(end, int)):
        return None
    first, stop, stride = slice(start, end, step).indices(axis.size)
    return picked(site, axis, first, stop, stride) if stride > 0 else None


def mend_gather(edit: Edit) -> None:
    """Constant indices are counted anew."""
    cut: Cut | None = edit.memo
    if cut is None or not (edit.changed(cut.before) or edit.changed(cut.picked)):
        return
    first = edit.left(cut.before) + cut.offset
    edit.set_constant(1, first + cut.step * np.arange(edit.left(cut.picked), dtype=np.int64))


@rule("Gather", fix=mend_gather)
def gather(site: Site) -> None:
    """Constant runs and strides pick like a Slice; any other index pins the axis it picks from."""
    data, axis = site.axes(0), site.axis()
    indices = site.array(1)
    if indices is not None and indices.ndim == 1 and len(indices) > 1 and isinstance(data[axis].size, int):
        size = data[axis].size
        values = np.where(indices < 0, indices + size, indices)
        step = int(values[1] - values[0])
        if step > 0 and (np.diff(values) == step).all():
            cut = picked(site, data[axis], int(values[0]), int(values[-1]) + 1, step)
            if cut is not None and cut.picked.size == len(values):
                site.remember(cut)
                site.set([*data[:axis], cut.picked, *data[axis + 1 :]])
                return
    at_run_time = "the axis indexed at run time" if indices is None else "the axis picked from"
    site.pin(data[axis], at_run_time)
    if site.value(1).is_initializer():
        site.pin(site.axes(1), "the indices")
    site.set([*data[:axis], *site.axes(1), *data[axis + 1 :]])


@rule("GatherElements")
def gather_elements(site: Site) -> None:
    """The indexed axis is pinned; the others pass where they are not shortened."""
    data, index, axis = site.axes(0), site.axes(1), site.axis()
    site.pin(data[axis], "the axis indexed at run time")
    site.pin(index[axis], "the axis indexed at run time")
    for i, (a, b) in enumerate(zip(data, index, strict=True)):
        if i == axis:
            continue
        if a.size != b.size:
            raise CannotFollowError("an axis is shortened")
        site.space.unify(a, b)
    site.set(index)


@rule("GatherND")
def gather_nd(site: Site) -> None:
    """The indexed axes are pinned; those behind them pass."""
    data, index = site.axes(0), site.axes(1)
    batch = site.int_("batch_dims", 0)
    depth = index[-1].size
    if not isinstance(depth, int):
        raise CannotFollowError("the depth of its indices is dynamic")
    site.pin(data[: batch + depth], "an axis indexed at run time")
    site.pin(index, "the indices")
    site.set([*index[:-1], *data[batch + depth :]])


@rule("ScatterND ScatterElements Scatter")
def scatter(site: Site) -> None:
    """Positions are written at run time: the data's indexed axes are pinned, trailing ones pass in ScatterND."""
    data, index, updates = site.axes(0), site.axes(1), site.axes(2)
    site.pin(index, "the indices")
    depth = index[-1].size
    if site.node.op_type != "ScatterND" or not isinstance(depth, int):
        raise CannotFollowError("slots are written at run time")
    site.pin(data[:depth], "an axis written at run time")
    lead = len(index) - 1
    for a, b in zip(data[depth:], updates[lead:], strict=True):
        site.same(a, b)
    site.pin(updates[:lead], "the updates")
    site.set(data)


@rule("Compress")
def compress(site: Site) -> None:
    """Slots are picked at run time."""
    raise CannotFollowError("slots are picked at run time")


