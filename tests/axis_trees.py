"""A hidden tree says what an axis really is; a view opens some of its nodes and leaves the rest as atoms."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from math import prod

import numpy as np
from hypothesis import strategies as st

from sparsecc.axes.algebra import Atom, Axis, atoms_of, cat, mul
from sparsecc.axes.owners import owners_of

Path = tuple[int, ...]


@dataclass(frozen=True)
class Tree:
    """A leaf of `size` slots, or children side by side (`cat`) or multiplied (`mul`)."""

    kind: str
    size: int
    children: tuple[Tree, ...] = ()


@dataclass(frozen=True)
class View:
    """How a tree is shown: cuts between the children of each opened node, by its path."""

    cuts: dict[Path, frozenset[int]]
    shared: frozenset[Path]


def leaf(size: int) -> Tree:
    return Tree("leaf", size)


def node(kind: str, children: list[Tree]) -> Tree:
    sizes = [child.size for child in children]
    return Tree(kind, sum(sizes) if kind == "cat" else prod(sizes), tuple(children))


@st.composite
def trees(draw: st.DrawFn, depth: int = 3, least: int = 1) -> Tree:
    kind = draw(st.sampled_from(["leaf", "cat", "mul"])) if depth else "leaf"
    if kind == "leaf":
        return leaf(draw(st.integers(least, 4)))
    smallest = 2 if kind == "mul" else 1
    return node(kind, draw(st.lists(trees(depth - 1, smallest), min_size=2, max_size=3)))


@st.composite
def views(draw: st.DrawFn, tree: Tree) -> View:
    cuts: dict[Path, frozenset[int]] = {}
    shared: set[Path] = set()
    pending: list[tuple[Path, Tree]] = [((), tree)]
    while pending:
        path, here = pending.pop()
        if draw(st.booleans()):
            shared.add(path)
        if here.kind == "leaf" or draw(st.booleans()):
            continue
        places = range(1, len(here.children))
        cuts[path] = frozenset(p for p in places if draw(st.booleans()))
        for run in runs(here, cuts[path]):
            if len(run) == 1:
                pending.append(((*path, run[0]), here.children[run[0]]))
    return View(cuts, frozenset(shared))


def runs(tree: Tree, cuts: frozenset[int]) -> list[range]:
    """The children of an opened node, grouped between its cuts."""
    edges = [0, *sorted(cuts), len(tree.children)]
    return [range(a, b) for a, b in pairwise(edges)]


def expression(tree: Tree, view: View, pool: dict[object, Atom], path: Path = ()) -> Axis:
    """The view as an axis. Atoms at paths that it shares come from the pool of all views."""
    cuts = view.cuts.get(path, frozenset())
    if not cuts:
        return _atom(tree.size, path, path in view.shared, pool)
    found = []
    for run in runs(tree, cuts):
        children = [tree.children[i] for i in run]
        if len(run) == 1:
            found.append(expression(children[0], view, pool, (*path, run[0])))
        else:
            found.append(Atom(node(tree.kind, children).size))
    return cat(found) if tree.kind == "cat" else mul(found)


def _atom(size: int, path: Path, shared: bool, pool: dict[object, Atom]) -> Atom:
    return pool.setdefault(path, Atom(size)) if shared else Atom(size)


Slots = list[frozenset[tuple[object, int]]]
Partition = set[frozenset[int]]


def slots(tree: Tree, cuts: dict[Path, frozenset[int]], path: Path = ()) -> Slots:
    """Brute force: for every slot of the tree, the (atom, index) that it is made of."""
    here = cuts.get(path, frozenset())
    if not here:
        return [frozenset({((path, None), i)}) for i in range(tree.size)]
    parts = []
    for run in runs(tree, here):
        if len(run) == 1:
            parts.append(slots(tree.children[run[0]], cuts, (*path, run[0])))
        else:
            size = node(tree.kind, [tree.children[i] for i in run]).size
            parts.append([frozenset({((path, run[0]), i)}) for i in range(size)])
    if tree.kind == "cat":
        return [slot for part in parts for slot in part]
    total: Slots = [frozenset()]
    for part in parts:
        total = [a | b for a in total for b in part]
    return total


def partition(expected: Slots) -> Partition:
    """The positions that go together: one set per slot of every atom of more than one slot."""
    owned: dict[tuple[object, int], set[int]] = {}
    for position, owners in enumerate(expected):
        for owner in owners:
            owned.setdefault(owner, set()).add(position)
    several = {name for name, index in owned if index > 0}
    return {frozenset(found) for (name, _), found in owned.items() if name in several}


def concluded(axis: Axis) -> Partition:
    """The same, as the algebra sees it."""
    found: Partition = set()
    for atom in atoms_of(axis):
        if atom.size == 1:
            continue
        owners = owners_of(axis, atom)
        assert isinstance(atom.size, int)
        found |= {frozenset(np.flatnonzero(owners == i).tolist()) for i in range(atom.size)}
    return found


def merged(all_views: list[View]) -> dict[Path, frozenset[int]]:
    """Every node that any view opened, with the cuts of all."""
    cuts: dict[Path, frozenset[int]] = {}
    for view in all_views:
        for path, own in view.cuts.items():
            cuts[path] = cuts.get(path, frozenset()) | own
    return cuts


@st.composite
def systems(draw: st.DrawFn) -> tuple[Tree, list[View]]:
    tree = draw(trees().filter(lambda t: 2 <= t.size <= 300))
    return tree, draw(st.lists(views(tree), min_size=2, max_size=5))
