"""The axis algebra against a brute-force model of slots.

Views of one hidden tree are the same axis: unified in any order, they must be refined to exactly what any of
them has opened, and no further.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from itertools import pairwise
from math import prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsecc.axes import algebra as axes
from sparsecc.axes.algebra import (
    VANISHED,
    Atom,
    Axis,
    Cat,
    Mul,
    Space,
    atoms_of,
    cat,
    factors_of,
    mask,
    mul,
    parts_of,
    resolve,
)
from sparsecc.axes.counting import count
from sparsecc.axes.owners import owners_of, slot_sums
from sparsecc.axes.sizes import Size
from tests.axis_trees import Tree, View, concluded, expression, merged, partition, slots, systems


def unified(tree: Tree, all_views: list[View], order: list[int], flip: bool) -> list[Axis]:
    """Unify the views one after another along `order`; all must succeed."""
    space, pool = Space(), dict[object, Atom]()
    found = [expression(tree, view, pool) for view in all_views]
    for a, b in pairwise(order):
        pair = (found[b], found[a]) if flip else (found[a], found[b])
        assert space.unify(*pair)
    return found


@settings(max_examples=150)
@given(systems(), st.data())
def test_unification_concludes_what_brute_force_does_in_any_order(
    system: tuple[Tree, list[View]], data: st.DataObject
) -> None:
    tree, all_views = system
    wanted = partition(slots(tree, merged(all_views)))
    order = data.draw(st.permutations(range(len(all_views))))
    for flip in (False, True):
        for axis in unified(tree, all_views, list(order), flip):
            assert axis.size == tree.size
            assert concluded(axis) == wanted


@settings(max_examples=100)
@given(systems(), st.randoms(use_true_random=False))
def test_equal_axes_have_equal_masks_and_counts(system: tuple[Tree, list[View]], random: object) -> None:
    tree, all_views = system
    found = unified(tree, all_views, list(range(len(all_views))), False)
    keep, kept = {}, {}
    for atom in atoms_of(found[0]):
        if isinstance(atom.size, int) and atom.size > 1:
            keep[atom] = np.asarray([random.random() < 0.6 for _ in range(atom.size)])  # type: ignore[attr-defined]
            kept[atom] = int(keep[atom].sum())
    masks = [mask(axis, keep) for axis in found]
    for one, axis in zip(masks, found, strict=True):
        if not keep:
            assert one is None
            continue
        assert one is not None
        assert one.shape == (tree.size,)
        np.testing.assert_array_equal(one, masks[0])
        assert count(axis, kept) == one.sum()


@settings(max_examples=100)
@given(systems(), st.integers(0, 10))
def test_a_pin_reaches_every_axis_that_is_the_same(system: tuple[Tree, list[View]], which: int) -> None:
    tree, all_views = system
    for early in (True, False):
        space, pool = Space(), dict[object, Atom]()
        found = [expression(tree, view, pool) for view in all_views]
        chosen = found[which % len(found)]
        if early:
            space.pin(chosen, "why")
        for a, b in pairwise(found):
            assert space.unify(a, b)
        if not early:
            space.pin(chosen, "why")
        pinned = {atom.pin for axis in found for atom in atoms_of(axis) if atom.size != 1}
        assert pinned <= {"why"}


def consistent(whole: Axis, pieces: list[Axis]) -> None:
    """The pieces, side by side, are made of the same slots of the same atoms as the whole."""
    for atom in {a for axis in (whole, *pieces) for a in atoms_of(axis) if a.size != 1}:
        side_by_side = np.concatenate([owners_of(piece, atom) for piece in pieces])
        np.testing.assert_array_equal(owners_of(whole, atom), side_by_side)


@settings(max_examples=200)
@given(systems(), st.data())
def test_pieces_are_consecutive_slots(system: tuple[Tree, list[View]], data: st.DataObject) -> None:
    tree, all_views = system
    axis = expression(tree, all_views[0], {})
    edges = sorted(data.draw(st.sets(st.integers(1, tree.size - 1), min_size=1, max_size=4)))
    sizes = [b - a for a, b in pairwise([0, *edges, tree.size])]
    found = Space().pieces(axis, sizes)
    if found is None:
        return
    assert [piece.size for piece in found] == sizes
    consistent(axis, found)


@settings(max_examples=100)
@given(st.integers(2, 40), st.data())
def test_an_atom_can_be_cut_anywhere(size: int, data: st.DataObject) -> None:
    atom, after = Atom(size), data.draw(st.integers(1, size - 1))
    halves = Space().cut(atom, after)
    assert halves is not None
    assert (halves[0].size, halves[1].size) == (after, size - after)
    consistent(atom, list(halves))


@settings(max_examples=60)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=4))
def test_an_atom_factors_row_major(sizes: list[int]) -> None:
    atom = Atom(prod(sizes))
    found = Space().factored(atom, sizes)
    assert found is not None
    assert [f.size for f in found] == sizes
    for factor, index in zip(found, np.indices(sizes).reshape(len(sizes), -1), strict=True):
        if isinstance(factor, Atom) and factor.size != 1:
            np.testing.assert_array_equal(owners_of(atom, factor), index)


def test_cuts_at_the_ends_or_outside_are_refused() -> None:
    for after in (0, 6, 7):
        assert Space().cut(Atom(6), after) is None
    assert Space().pieces(Atom(6), [2, 3]) is None
    assert Space().factored(Atom(6), [2, 4]) is None


def test_a_product_is_cut_inside_a_row() -> None:
    outer, inner = Atom(3), Atom(4)
    axis = mul((outer, inner))
    halves = Space().cut(axis, 6)
    assert halves is not None
    consistent(axis, list(halves))
    assert [a.size for a in atoms_of(outer)] == [1, 1, 1]
    assert [a.size for a in atoms_of(inner)] == [2, 2]


def test_a_row_that_is_cut_inside_may_not_go_by_itself() -> None:
    """What is left and right of the cut is named by the slots of the row alone."""
    outer, inner = Atom(3), Atom(4)
    assert Space().cut(mul((outer, inner)), 6) is not None
    assert [a.roles >= VANISHED for a in atoms_of(outer)] == [True] * 3
    assert not any(a.roles for a in atoms_of(inner))


def test_groups_of_two_widths_agree_on_what_divides_both() -> None:
    """Three groups of 16 beside 24 more, seen as three groups of 24: the same place of every 8 can go."""
    space, inner, beside = Space(), Atom(16), Atom(24)
    grouped = space.factored(joined_axes := cat([mul([Atom(3), inner]), beside]), (3, 24))
    assert grouped is not None
    (free,) = {a for a in atoms_of(joined_axes) if a.size != 1}
    assert free.size == 8
    keep = {free: np.arange(8) % 2 == 0}
    kept = mask(joined_axes, keep)
    assert kept is not None
    assert np.array_equal(kept, np.tile(keep[free], 9))
    assert all(a.pin is None for a in atoms_of(joined_axes))


@pytest.mark.parametrize(
    ("x", "y"),
    [
        (lambda: Atom(5), lambda: Atom(6)),
        (lambda: mul((Atom(2), Atom(3))), lambda: mul((Atom(3), Atom(2)))),
        (lambda: cat((Atom(4), mul((Atom(2), Atom(3))))), lambda: cat((Atom(4), mul((Atom(3), Atom(2)))))),
    ],
    ids=["sizes", "factors", "inside"],
)
def test_axes_that_cannot_be_aligned_are_both_pinned(x: Callable[[], Axis], y: Callable[[], Axis]) -> None:
    space = Space()
    space.cause = "a node"
    a, b = x(), y()
    assert not space.unify(a, b)
    assert all(atom.pin and "cannot be aligned" in atom.pin for axis in (a, b) for atom in atoms_of(axis))
    assert {cause for cause, _, _ in space.pins} == {"a node"}


def test_the_first_reason_is_kept_and_roles_travel() -> None:
    space, a, b = Space(), Atom(4), Atom(4)
    space.pin(a, "first")
    space.pin(a, "second")
    space.mark(b, "head")
    assert space.unify(b, a)
    assert (atoms_of(b)[0].pin, atoms_of(a)[0].roles) == ("first", frozenset({"head"}))
    assert space.journal[0][1:] == (b, a)


def test_size_one_carries_no_constraint() -> None:
    space, a, b = Space(), Atom(1), Atom(1)
    assert space.unify(a, b)
    assert resolve(a) is not resolve(b)
    assert mul((a, b)).size == 1
    assert mul(()).size == 1


def test_dynamic_sizes_align_where_they_are_equal_at_every_probe() -> None:
    space, batch, width = Space(), Atom((2, 3)), Atom(8)
    flat = Atom((16, 24))
    assert space.unify(flat, mul((batch, width)))
    assert factors_of(flat) == [batch, width]
    assert not space.unify(Atom((16, 24)), Atom((16, 25)))
    assert space.cut(Atom((16, 24)), 4) is not None
    assert space.cut(Atom((2, 24)), 4) is None
    masked = mask(flat, {width: np.arange(8) < 4}, probe=1)
    assert masked is not None
    assert (masked.shape, int(masked.sum())) == ((24,), 12)
    assert count(flat, {width: 4}) == (8, 12)


def test_slot_sums_add_up_every_slot_of_an_axis() -> None:
    head, width = Atom(2), Atom(3)
    axis = cat((mul((head, width)), head))
    values = np.arange(8, dtype=np.float64)
    np.testing.assert_array_equal(slot_sums(axis, head, values), [0 + 1 + 2 + 6, 3 + 4 + 5 + 7])
    np.testing.assert_array_equal(slot_sums(axis, width, values), [0 + 3, 1 + 4, 2 + 5])


def test_names_say_what_an_axis_is() -> None:
    assert repr(cat((mul((Atom(2), Atom(3))), Atom(4)))) == "Cat(Mul(Atom(2), Atom(3)), Atom(4))"


# Depth and cost --------------------------------------------------------------------------------------


def test_deep_chains_need_no_deep_stack() -> None:
    """Twenty thousand axes that each hold the one before."""
    space, depth = Space(), 20_000
    whole: Axis = Atom(2)
    for _ in range(depth):
        longer = Atom(3)
        space.unify(longer, cat((Atom(1), Atom(2))))
        rest = parts_of(longer)[1]
        space.unify(rest, whole)
        whole = rest
    first = Atom(2)
    assert space.unify(first, whole)
    chain = [Atom(2) for _ in range(depth)]
    for a, b in pairwise(chain):
        space.unify(a, b)
    space.pin(chain[-1], "the end")
    assert atoms_of(chain[0])[0].pin == "the end"
    nested = Atom(depth)
    rest_of: Axis = nested
    for size in range(depth - 1, 1, -1):
        halves = space.cut(rest_of, 1)
        assert halves is not None
        assert halves[1].size == size
        rest_of = halves[1]
    kept = np.array([True, False])
    found = mask(nested, {atoms_of(rest_of)[0]: kept})
    assert found is not None
    assert found.sum() == depth - 1
    assert count(nested, {atoms_of(rest_of)[0]: 1}) == depth - 1


def steps(work: Callable[[], object]) -> int:
    """Calls and yields inside the algebra while `work` runs."""
    total = 0

    def note(frame: object, event: str, argument: object) -> None:
        nonlocal total
        total += event == "call" and frame.f_code.co_filename == axes.__file__  # type: ignore[attr-defined]

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(before)
    return total


def _chain(n: int) -> None:
    space, atoms = Space(), [Atom(64) for _ in range(n)]
    for a, b in pairwise(atoms):
        space.unify(a, b)
    for atom in atoms:
        resolve(atom)


def _backwards(n: int) -> None:
    space, atoms = Space(), [Atom(64) for _ in range(n)]
    for a, b in reversed(list(pairwise(atoms))):
        space.unify(a, b)
    for atom in atoms:
        resolve(atom)


def _one_width(n: int) -> None:
    space, width = Space(), Atom(768)
    for _ in range(n):
        layer = Atom(768)
        space.unify(layer, mul((Atom(12), Atom(64))))
        space.unify(width, layer)


def _pieces(n: int) -> None:
    Space().pieces(Atom(n), [1] * n)


def _dense_block(n: int) -> None:
    space = Space()
    parts = [Atom(2) for _ in range(n)]
    space.pieces(cat(parts), [2] * n)


def _columns(n: int) -> None:
    space = Space()
    space.unify(cat([Atom(3) for _ in range(n)]), cat([Atom(3) for _ in range(n)]))


@pytest.mark.parametrize("work", [_chain, _backwards, _one_width, _pieces, _dense_block, _columns])
def test_cost_is_near_linear(work: Callable[[int], None]) -> None:
    few, many = steps(lambda: work(200)), steps(lambda: work(800))
    assert many < 4.5 * few


def test_parts_and_factors_are_flat() -> None:
    a, b, c = Atom(2), Atom(3), Atom(4)
    assert parts_of(cat((cat((a, b)), c))) == [a, b, c]
    assert factors_of(mul((mul((a, b)), c))) == [a, b, c]
    assert isinstance(resolve(cat((a, b))), Cat)
    assert isinstance(resolve(mul((a, b))), Mul)
    size: Size = cat((a, b, c)).size
    assert size == 9
