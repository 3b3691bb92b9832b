"""Operators that pick slots: Slice, Gather and their relatives."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from sparsecc.axes.algebra import Atom, Axis, atoms_of, cat, mul
from sparsecc.axes.sizes import Size, at
from sparsecc.rules.edit import Edit
from sparsecc.rules.site import CannotFollowError, Site
from sparsecc.rules.table import rule, traits_of
from sparsecc.rules.traits import MOVED, Trait


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
    count = len(range(start, stop, step))
    if step > 1 and count > 1 and count * step <= size:
        return _strided(site, axis, start, step, count)
    return None


def _strided(site: Site, axis: Axis, start: int, step: int, count: int) -> Cut | None:
    """`count` slots, `step` apart: slot `offset` of every run of `step` slots in a part of the axis."""
    size = axis.size
    assert isinstance(size, int)
    first = min(start if start >= step else 0, size - count * step)
    length = count * step
    pieces = site.space.pieces(axis, [n for n in (first, length, size - first - length) if n > 0])
    factors = site.space.factored(pieces[1 if first else 0], (count, step)) if pieces is not None else None
    if pieces is None or factors is None:
        return None
    site.pin(factors[1], f"the stride {step}")
    return Cut(pieces[0] if first else Atom(0), factors[0], step, start - first)


def _bounds(site: Site) -> dict[int, tuple[Size, Size, int]] | None:
    """Axis -> (start, end, step) as given; None where an axis or step is not static."""
    starts: Sequence[Size] | None
    ends: Sequence[Size] | None
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
    assert starts is not None
    assert ends is not None
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


@rule("Slice", fix=mend_slice, traits=MOVED)
def slice_(site: Site) -> None:
    """Consecutive or strided slots, or all of them backwards. Cuts of dynamic extent pin their axis."""
    data, shape = site.axes(0), site.out_shape()
    bounds = _bounds(site)
    if bounds is None:
        sizes = enumerate(zip(data, shape, strict=True))
        bounds = {i: ((0, 1), (0, 1), 1) for i, (a, size) in sizes if a.size != size}
    result, cuts = list(data), {}
    for axis, (start, end, step) in bounds.items():
        cut = _cut(site, data[axis], start, end, step)
        if cut is not None and cut.picked.size == shape[axis]:
            cuts[axis] = cut
            result[axis] = cut.picked
        elif (backwards := _turned(site, data[axis], start, end, step)) is not None:
            result[axis] = backwards
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


def _turned(site: Site, axis: Axis, start: Size, end: Size, step: int) -> Axis | None:
    """All slots of a static axis from the last to the first, which needs no mending; None of any other cut."""
    if step != -1 or not (isinstance(axis.size, int) and isinstance(start, int) and isinstance(end, int)):
        return None
    return turned(site, axis) if len(range(axis.size)[start:end:step]) == axis.size > 1 else None


def turned(site: Site, axis: Axis) -> Axis | None:
    """The slots of a static axis from the last to the first; None where they are too many, or stay anyway."""
    assert isinstance(axis.size, int)
    return _runs(site, axis, np.arange(axis.size)[::-1])


MAX_RUNS = 1024
"""A constant pick of more runs of consecutive slots than this is not cut apart."""


def mend_gather(edit: Edit) -> None:
    """Constant indices are counted anew among the slots that are left."""
    if edit.memo is not None:
        _count_anew(edit, *edit.memo)


def _count_anew(edit: Edit, numbered: Axis, picked: Axis) -> None:
    """Constant indices (operand 1, one for each slot of `picked`) of slots of `numbered`: those that are left, by
    their new numbers."""
    if not (edit.changed(numbered) or edit.changed(picked)):
        return
    indices, stays = edit.shapes.array(edit.node.inputs[1]), edit.mask(numbered)
    assert indices is not None, f"{edit.node.name} names slots that were not known"
    left = np.where(indices < 0, indices + len(stays), indices)[edit.mask(picked)]
    edit.set_constant(1, (np.cumsum(stays) - 1)[left].astype(indices.dtype))


@rule("Gather", fix=mend_gather, traits=MOVED)
def gather(site: Site) -> None:
    """Constant picks are runs, strides, shuffles or repeats; any other index pins the axis it picks from."""
    data, axis = site.axes(0), site.axis()
    indices = site.array(1)
    if indices is not None and indices.ndim == 1 and len(indices) > 1 and isinstance(data[axis].size, int):
        found = chosen(site, data[axis], np.where(indices < 0, indices + data[axis].size, indices))
        if found is not None and found.size == len(indices):
            site.remember((data[axis], found))
            site.set([*data[:axis], found, *data[axis + 1 :]])
            return
    if by_number(site, data[axis]):
        site.set([*data[:axis], *site.axes(1), *data[axis + 1 :]])
        return
    if not (
        indices is not None
        and indices.ndim == 0
        and int(indices) in (0, -1)
        and _is_measured_only(site.node.outputs[0])
    ):
        at_run_time = "the axis indexed at run time" if indices is None else "the axis picked from"
        site.pin(data[axis], at_run_time)
    if site.value(1).is_initializer():
        site.pin(site.axes(1), "the indices")
    site.set([*data[:axis], *site.axes(1), *data[axis + 1 :]])


def _is_measured_only(value: ir.Value) -> bool:
    """Whether nobody reads a value but for its sizes."""
    return not value.is_graph_output() and all(traits_of(use.node) & Trait.COUNTS for use in value.uses())


STACKED = 3
"""The least rank of a stack of experts' matrices; tables of embeddings have a lower one."""


def by_number(site: Site, axis: Axis) -> bool:
    """Whether slots of an axis are picked by numbers of slots of another, which then is the same axis."""
    counted = site.numbered(1)
    if counted is None:
        return False
    site.space.unify(counted, axis)
    if site.is_constant(0):
        site.record.picked.update(site.node.outputs)
        if site.rank(0) >= STACKED:
            site.space.mark(counted, "expert")
    return True


def chosen(site: Site, axis: Axis, indices: np.ndarray) -> Axis | None:
    """The slots of a static axis at known positions, as an expression."""
    steps = np.diff(indices)
    if (steps == steps[0]).all() and steps[0] > 0:
        cut = picked(site, axis, int(indices[0]), int(indices[-1]) + 1, int(steps[0]))
        if cut is not None:
            return cut.picked
    return _shuffled(site, axis, indices) or _repeated(axis, indices) or _runs(site, axis, indices)


def _shuffled(site: Site, axis: Axis, indices: np.ndarray) -> Axis | None:
    """A shuffle reads rows*columns slots column by column: 0, columns, 2*columns, …, 1, columns+1, …"""
    size, columns = len(indices), int(indices[1] - indices[0])
    if size != axis.size or columns < 2 or size % columns:
        return None
    if not np.array_equal(indices, np.arange(size).reshape(-1, columns).T.ravel()):
        return None
    found = site.space.factored(axis, (size // columns, columns))
    return None if found is None else mul((found[1], found[0]))


def _repeated(axis: Axis, indices: np.ndarray) -> Axis | None:
    """Every slot several times: one after the other (0, 0, 1, 1, …), or all of them over and over."""
    size = axis.size
    assert isinstance(size, int)
    times = len(indices) // size
    if times < 2 or times * size != len(indices):
        return None
    if np.array_equal(indices, np.repeat(np.arange(size), times)):
        return mul((axis, Atom(times)))
    if np.array_equal(indices, np.tile(np.arange(size), times)):
        return mul((Atom(times), axis))
    return None


def _runs(site: Site, axis: Axis, indices: np.ndarray) -> Axis | None:
    """Runs of consecutive slots in any order: the pieces of the axis put together anew."""
    breaks = np.flatnonzero(np.diff(indices) != 1) + 1
    if len(breaks) + 1 > MAX_RUNS or all(atom.pin for atom in atoms_of(axis)):
        return None
    size = axis.size
    assert isinstance(size, int)
    runs = [(int(run[0]), int(run[-1]) + 1) for run in np.split(indices, breaks)]
    bounds = sorted({0, size, *(edge for run in runs for edge in run)})
    pieces = site.space.pieces(axis, [b - a for a, b in itertools.pairwise(bounds)])
    if pieces is None:
        return None
    starts = dict(zip(bounds, range(len(bounds)), strict=True))
    return cat(piece for first, last in runs for piece in pieces[starts[first] : starts[last]])


@rule("GatherElements", traits=MOVED)
def gather_elements(site: Site) -> None:
    """The indexed axis is pinned unless its slots were numbered; the others pass where they are not shortened."""
    follow_numbers(site, site.axis())


def follow_numbers(site: Site, axis: int) -> None:
    """Elements of operand 0 at the numbers that operand 1 holds along an axis."""
    data, index = site.axes(0), site.axes(1)
    if by_number(site, data[axis]):
        site.pin(index[axis], "the number of results")
        data = [*data[:axis], index[axis], *data[axis + 1 :]]
    beside(site, axis, data, index)
    site.set(index)


def follow_written(site: Site, axis: int, index: Sequence[Axis], *others: Sequence[Axis]) -> None:
    """Elements are written into operand 0 at the numbers that operand 1 holds along an axis.

    Mixtures that run all their experts write the gates of the chosen ones among zeros so.
    """
    data, counted = site.axes(0), site.numbered(1)
    site.set(data)
    if counted is not None:
        site.space.unify(counted, data[axis])
        site.space.mark(counted, "expert")
        data = [*data[:axis], index[axis], *data[axis + 1 :]]
    beside(site, axis, data, index, *others)


def beside(site: Site, axis: int, data: Sequence[Axis], *others: Sequence[Axis]) -> None:
    """Elements are found by numbers along `axis`; along any other axis slot i meets slot i."""
    for other in others:
        for i, (a, b) in enumerate(zip(data, other, strict=True)):
            if i != axis and a.size == b.size:
                site.same(a, b)
            else:
                site.pin([a, b], "the axis indexed at run time")


@rule("ScatterElements Scatter")
def scatter_elements(site: Site) -> None:
    """The written axis is pinned unless its slots were numbered; the others pass where they are not shortened."""
    follow_written(site, site.axis(), site.axes(1), site.axes(2))


@rule("Compress", traits=MOVED)
def compress(site: Site) -> None:
    """Slots are picked at run time."""
    raise CannotFollowError("slots are picked at run time")
