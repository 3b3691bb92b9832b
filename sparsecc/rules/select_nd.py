"""GatherND and ScatterND: places in several axes at once.

Where these are constant and a product (rows by columns by channels, as exporters write an assignment to a slice), each
axis is picked from on its own, as a Gather does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sparsecc.axes.algebra import Axis
from sparsecc.rules.edit import Edit
from sparsecc.rules.select import by_number, chosen
from sparsecc.rules.site import CannotFollowError, Site
from sparsecc.rules.table import rule
from sparsecc.rules.traits import MOVED

LARGEST = 1 << 20
"""Numbers of constant places that are looked at."""


@dataclass(frozen=True)
class _Pick:
    """The slots `found` of an axis, which is the component `place` of the indices, along their dimension `lead`."""

    axis: Axis
    found: Axis
    place: int
    lead: int


def _mend(edit: Edit) -> None:
    """Constant places are counted anew among the slots that are left."""
    if edit.memo is None:
        return
    array, picks = edit.memo
    if not any(edit.changed(pick.axis) or edit.changed(pick.found) for pick in picks):
        return
    for pick in picks:
        stays = edit.mask(pick.axis)
        array = np.compress(edit.mask(pick.found), array, axis=pick.lead)
        numbers = array[..., pick.place]
        array[..., pick.place] = (np.cumsum(stays) - 1)[np.where(numbers < 0, numbers + len(stays), numbers)]
    edit.set_constant(1, array)


@rule("GatherND", fix=_mend, traits=MOVED)
def gather_nd(site: Site) -> None:
    """Constant places that are a product of picks are picks of each axis; else the indexed axes are pinned, and those
    behind them pass."""
    data, index, batch, depth = site.axes(0), site.axes(1), site.int_("batch_dims", 0), _depth(site)
    if batch == 0 and depth == 1 and by_number(site, data[0]):
        site.set([*index[:-1], *data[1:]])
        return
    site.pin(index, "the indices")
    array = _places(site) if batch == 0 else None
    leads = None if array is None else _product(array)
    if array is None or leads is None:
        site.pin(data[: batch + depth], "an axis indexed at run time")
        site.set([*index[:-1], *data[batch + depth :]])
        return
    picks = _picks(site, data, array, leads)
    result = list(index[:-1])
    for pick in picks:
        result[pick.lead] = pick.found
    site.pin(
        [axis for i, axis in enumerate(data[:depth]) if i not in {p.place for p in picks}],
        "the axis picked from",
    )
    site.remember((array, picks))
    site.set([*result, *data[depth:]])


@rule("ScatterND", fix=_mend)
def scatter_nd(site: Site) -> None:
    """Slots at constant places, a product of picks of whole slots, are those of the updates; other axes written to are
    pinned, the rest pass."""
    data, index, updates, depth = site.axes(0), site.axes(1), site.axes(2), _depth(site)
    lead = len(index) - 1
    for a, b in zip(data[depth:], updates[lead:], strict=True):
        site.same(a, b)
    site.set(data)
    site.pin(index, "the indices")
    array = _places(site)
    leads = None if array is None else _product(array)
    picks: Sequence[_Pick] = ()
    if array is not None and leads is not None and _is_written_once(data, array, leads):
        picks = _picks(site, data, array, leads)
        for pick in picks:
            site.space.unify(pick.found, updates[pick.lead])
        site.remember((array, picks))
    followed, filled = {pick.place for pick in picks}, {pick.lead for pick in picks}
    site.pin([a for i, a in enumerate(data[:depth]) if i not in followed], "an axis written at run time")
    site.pin([a for i, a in enumerate(updates[:lead]) if i not in filled], "the updates")


def _depth(site: Site) -> int:
    depth = site.axes(1)[-1].size
    if not isinstance(depth, int):
        raise CannotFollowError("the depth of its indices is dynamic")
    return depth


def _places(site: Site) -> np.ndarray | None:
    """The indices where they are constant."""
    known = site.array(1)
    tensor = site.value(1).const_value if site.is_constant(1) else None
    if known is None and tensor is not None and tensor.size <= LARGEST:
        known = tensor.numpy()
    return known if known is not None and known.size else None


def _product(array: np.ndarray) -> dict[int, int] | None:
    """Component of the indices -> the leading dimension along which it changes, for those that are not one number.
    None where the indices are no product."""
    leads: dict[int, int] = {}
    for place in range(array.shape[-1]):
        changing = [i for i in range(array.ndim - 1) if np.diff(array[..., place], axis=i).any()]
        if len(changing) > 1 or any(c in leads.values() for c in changing):
            return None
        if changing:
            leads[place] = changing[0]
    is_repeated = any(n > 1 and i not in leads.values() for i, n in enumerate(array.shape[:-1]))
    return None if is_repeated else leads


def _numbers(axis: Axis, array: np.ndarray, place: int, lead: int) -> np.ndarray:
    """The places along one leading dimension, counted from the start of a static axis."""
    first = tuple(slice(None) if i == lead else 0 for i in range(array.ndim - 1))
    numbers = array[..., place][first]
    return np.where(numbers < 0, numbers + axis.size, numbers)


def _is_written_once(data: Sequence[Axis], array: np.ndarray, leads: dict[int, int]) -> bool:
    """Whether no place comes twice."""
    known = [(data[place], place, lead) for place, lead in leads.items() if isinstance(data[place].size, int)]
    every = [_numbers(axis, array, place, lead) for axis, place, lead in known]
    return len(known) == len(leads) and all(len(np.unique(n)) == len(n) for n in every)


def _picks(site: Site, data: Sequence[Axis], array: np.ndarray, leads: dict[int, int]) -> list[_Pick]:
    """The picks that the algebra has an expression for."""
    found = []
    for place, lead in leads.items():
        axis = data[place]
        if not isinstance(axis.size, int):
            continue
        numbers = _numbers(axis, array, place, lead)
        slots = chosen(site, axis, numbers)
        if slots is not None and slots.size == len(numbers):
            found.append(_Pick(axis, slots, place, lead))
    return found
