"""The axis algebra: every dimension is an expression, and coupling is unification.

An axis is an `Atom` (interchangeable slots, nothing known yet), a `Cat` (parts side by side) or a `Mul`
(row-major product, the outer factor varies slowest). `Space.unify(x, y)` states that two axes are the same
axis, and refines atoms as far as that needs. What is left free at the end are the groups of coupled slots.

The algebra knows nothing of ONNX or torch. It never raises for shapes that cannot be aligned: it pins them.
Axes of size 1 carry no constraint. All walks are iterative, so depth is bounded by memory alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from sparsecc.axes.sizes import Size, at, is_static, minus, plus, product, quotient, smaller


class Axis:
    """Base of the three expressions. `size` is its number of slots."""

    __slots__ = ("size",)
    size: Size


class Atom(Axis):
    """Slots nothing is known about yet. Bound to another axis once unified with it."""

    __slots__ = ("bound", "pin", "roles")

    def __init__(self, size: Size) -> None:
        self.size = size
        self.bound: Axis | None = None
        self.pin: str | None = None
        self.roles: frozenset[str] = frozenset()

    def __repr__(self) -> str:
        return f"Atom({self.size})"


VANISHED = frozenset({"vanished"})
"""The role of a slot that some expression it belongs to does not name: it may not go by itself."""


class Cat(Axis):
    """Parts side by side; at least two, each of positive size."""

    __slots__ = ("parts",)

    def __init__(self, parts: tuple[Axis, ...], size: Size) -> None:
        self.parts = parts
        self.size = size

    def __repr__(self) -> str:
        return f"Cat{self.parts}"


class Mul(Axis):
    """Row-major product of at least two factors, none of size 1."""

    __slots__ = ("factors",)

    def __init__(self, factors: tuple[Axis, ...], size: Size) -> None:
        self.factors = factors
        self.size = size

    def __repr__(self) -> str:
        return f"Mul{self.factors}"


class Run(Axis):
    """Consecutive slots of an atom, from `start` on. Nothing is unified any more once there are any."""

    __slots__ = ("start", "whole")

    def __init__(self, whole: Atom, start: int, size: int) -> None:
        self.whole, self.start, self.size = whole, start, size


def resolve(axis: Axis) -> Axis:
    """What an axis stands for now: a free atom, a Cat, a Mul, or a Run once groups are made."""
    seen: list[Atom] = []
    while isinstance(axis, Atom) and axis.bound is not None:
        seen.append(axis)
        axis = axis.bound
    for atom in seen[:-1]:
        atom.bound = axis
    return axis


def cat(parts: Iterable[Axis]) -> Axis:
    """The parts side by side; one part alone is itself."""
    flat = [part for part in _flat(parts, Cat) if part.size != 0]
    if len(flat) == 1:
        return flat[0]
    size: Size = 0
    for part in flat:
        size = plus(size, part.size)
    return Cat(tuple(flat), size)


def mul(factors: Iterable[Axis]) -> Axis:
    """The row-major product; factors of size 1 vanish (VANISHED says so of them), one factor alone is itself."""
    given = list(factors)
    flat = []
    for factor in _flat(given, Mul):
        if factor.size != 1:
            flat.append(factor)
        elif isinstance(factor, Atom):
            factor.roles |= VANISHED
    if len(flat) == 1:
        return flat[0]
    if not flat:
        return given[0] if given else Atom(1)
    return Mul(tuple(flat), product(f.size for f in flat))


def _flat(axes: Iterable[Axis], kind: type[Axis]) -> Iterator[Axis]:
    """The axes, each Cat (or Mul, as `kind` says) among them replaced by what it is made of."""
    stack = [iter(tuple(axes))]
    while stack:
        axis = next(stack[-1], None)
        if axis is None:
            stack.pop()
            continue
        axis = resolve(axis)
        if isinstance(axis, (Cat, Mul)) and isinstance(axis, kind):
            stack.append(iter(axis.parts if isinstance(axis, Cat) else axis.factors))
        else:
            yield axis


def parts_of(axis: Axis) -> list[Axis]:
    """The parts of a Cat, flattened; any other axis is its own only part."""
    return [part for part in _flat((axis,), Cat) if part.size != 0]


def factors_of(axis: Axis) -> list[Axis]:
    """The factors of a Mul, flattened; any other axis is its own only factor."""
    return list(_flat((axis,), Mul))


def atoms_of(axis: Axis) -> list[Atom]:
    """The free atoms an axis is made of, each once, in order of appearance."""
    found: dict[Atom, None] = {}
    stack = [axis]
    while stack:
        top = resolve(stack.pop())
        if isinstance(top, Atom):
            found[top] = None
        elif isinstance(top, Run):
            found[top.whole] = None
        elif isinstance(top, Cat):
            stack.extend(reversed(top.parts))
        elif isinstance(top, Mul):
            stack.extend(reversed(top.factors))
    return list(found)


MOST_COPIES = 16
"""Copies of an axis that are written out side by side at most."""


class Space:
    """Where axes are unified and pinned.

    `cause` is whatever is being looked at (a node); `journal` keeps (cause, atom, what it was bound to) and
    `pins` keeps (cause, atom, reason), from which a coupling or a pin can be explained.
    """

    def __init__(self) -> None:
        self.cause: object = None
        self.journal: list[tuple[object, Atom, Axis]] = []
        self.pins: list[tuple[object, Atom, str]] = []

    def unify(self, x: Axis, y: Axis) -> bool:
        """State that x and y are the same axis. False (and both pinned) where they cannot be aligned."""
        pending = [(x, y)]
        while pending:
            a, b = pending.pop()
            a, b = resolve(a), resolve(b)
            if a is b or (a.size == 1 and b.size == 1):
                continue
            if a.size != b.size or not self._match(a, b, pending):
                reason = f"axes of {_shown(x)} and {_shown(y)} cannot be aligned"
                self.pin(x, reason)
                self.pin(y, reason)
                return False
        return True

    def pin(self, axis: Axis, reason: str) -> None:
        """No slot of the axis may go. The first reason is kept."""
        for atom in atoms_of(axis):
            if atom.pin is None:
                atom.pin = reason
                self.pins.append((self.cause, atom, reason))

    def mark(self, axis: Axis, role: str) -> None:
        """Note what the slots of an axis are used as (`head`, `head_dim`, `expert`)."""
        for atom in atoms_of(axis):
            atom.roles |= {role}

    def cut(self, axis: Axis, after: Size) -> tuple[Axis, Axis] | None:
        """Split an axis in two after `after` slots, refining it; None where that cannot be expressed."""
        axis = resolve(axis)
        if not (smaller(0, after) and smaller(after, axis.size)):
            return None
        if isinstance(axis, Atom):
            halves = Atom(after), Atom(minus(axis.size, after))
            self._bind(axis, Cat(halves, axis.size))
            return halves
        if isinstance(axis, Cat):
            return self._cut_cat(axis, after)
        assert isinstance(axis, Mul)
        return self._cut_mul(axis, after)

    def pieces(self, axis: Axis, sizes: Sequence[Size]) -> list[Axis] | None:
        """Split an axis into consecutive pieces of these sizes, which must sum to its own."""
        rest = parts_of(axis)[::-1]
        pieces: list[Axis] = []
        for size in sizes:
            taken = self._take(rest, size)
            if taken is None:
                return None
            pieces.append(cat(taken))
        return None if rest else pieces

    def factored(self, axis: Axis, sizes: Sequence[Size]) -> list[Axis] | None:
        """An axis as a product of factors of these sizes (size-1 factors get fresh atoms)."""
        atoms = [Atom(size) for size in sizes]
        if product(sizes) != axis.size or not self.unify(mul(atoms), axis):
            return None
        return [resolve(atom) for atom in atoms]

    def _bind(self, atom: Atom, axis: Axis) -> None:
        self.journal.append((self.cause, atom, axis))
        atom.bound = axis
        if atom.pin is not None or atom.roles:
            for leaf in atoms_of(axis):
                leaf.roles |= atom.roles
                leaf.pin = leaf.pin or atom.pin

    def _match(self, a: Axis, b: Axis, pending: list[tuple[Axis, Axis]]) -> bool:
        if isinstance(a, Atom):
            self._bind(a, b)
            return True
        if isinstance(b, Atom):
            self._bind(b, a)
            return True
        if isinstance(a, Mul) and isinstance(b, Mul):
            return self._match_factors(a, b, pending)
        return self._match_parts(a, b, pending)

    def _match_parts(self, a: Axis, b: Axis, pending: list[tuple[Axis, Axis]]) -> bool:
        left, right = parts_of(a)[::-1], parts_of(b)[::-1]
        while left and right:
            p, q = resolve(left.pop()), resolve(right.pop())
            if p.size != q.size:
                longer, rest, length = (p, left, q.size) if smaller(q.size, p.size) else (q, right, p.size)
                halves = self.cut(longer, length)
                if halves is None:
                    return False
                rest.extend(reversed(parts_of(halves[1])))
                head = parts_of(halves[0])
                if len(head) > 1:  # a Cat came out of a Mul: match it piece by piece
                    rest.extend(reversed(head))
                    (right if rest is left else left).append(q if rest is left else p)
                    continue
                p, q = (head[0], q) if rest is left else (p, head[0])
            if p.size == 1 and isinstance(p, Atom) and p is not q:  # a slot among others is not broadcast
                self._bind(p, q)
            pending.append((p, q))
        return not left and not right

    def _match_factors(self, a: Mul, b: Mul, pending: list[tuple[Axis, Axis]]) -> bool:
        left, right = factors_of(a)[::-1], factors_of(b)[::-1]
        while left and right:
            p, q = resolve(left.pop()), resolve(right.pop())  # an atom may be bound since
            if p.size != q.size:
                larger, rest, outer = (p, left, q.size) if smaller(q.size, p.size) else (q, right, p.size)
                inner = quotient(larger.size, outer)
                if inner is None:
                    return self._match_copies(mul([p, *left[::-1]]), mul([q, *right[::-1]]), pending)
                split = Atom(outer), Atom(inner)
                product_axis = Mul(split, larger.size)
                if isinstance(larger, Atom):
                    self._bind(larger, product_axis)
                else:
                    pending.append((larger, product_axis))
                rest.append(split[1])
                p, q = (split[0], q) if rest is left else (p, split[0])
            pending.append((p, q))
        return not left and not right

    def _match_copies(self, a: Axis, b: Axis, pending: list[tuple[Axis, Axis]]) -> bool:
        """Outer factors that do not divide (3 x 16 in 2 x 24): the one of fewer copies is written out."""
        fewer, other = (a, b) if smaller(factors_of(a)[0].size, factors_of(b)[0].size) else (b, a)
        copies, *inner = factors_of(fewer)
        together = math.gcd(*(at(x.size, 0) // at(factors_of(x)[0].size, 0) for x in (a, b)))
        if together == 1 or not isinstance(copies.size, int) or copies.size > MOST_COPIES:
            return False
        if self.pieces(copies, [1] * copies.size) is None:
            return False
        for copy in atoms_of(copies):
            copy.roles |= VANISHED
        pending.append((cat([mul(inner)] * copies.size), other))
        return True

    def _cut_cat(self, axis: Cat, after: Size) -> tuple[Axis, Axis] | None:
        rest = parts_of(axis)[::-1]
        taken = self._take(rest, after)
        return (cat(taken), cat(reversed(rest))) if taken is not None else None

    def _take(self, rest: list[Axis], missing: Size) -> list[Axis] | None:
        """Parts of `missing` slots off the end of `rest` (parts in reverse), cutting the last one."""
        taken: list[Axis] = []
        while smaller(0, missing) and rest:
            part = rest.pop()
            if smaller(missing, part.size):
                halves = self.cut(part, missing)
                if halves is None:
                    return None
                rest.extend(reversed(parts_of(halves[1])))
                return [*taken, halves[0]]
            taken.append(part)
            missing = minus(missing, part.size)
        return taken if taken and missing == 0 else None

    def _cut_mul(self, axis: Mul, after: Size) -> tuple[Axis, Axis] | None:
        outer, inner = axis.factors[0], mul(axis.factors[1:])
        whole = quotient(after, inner.size)
        if whole is not None:
            halves = self.cut(outer, whole)
            return None if halves is None else (mul((halves[0], inner)), mul((halves[1], inner)))
        if not (isinstance(after, int) and isinstance(inner.size, int) and isinstance(outer.size, int)):
            return None
        before, within = divmod(after, inner.size)
        split = self.cut(inner, within)
        units = self.pieces(outer, [n for n in (before, 1, outer.size - before - 1) if n])
        if split is None or units is None:
            return None
        for atom in atoms_of(units[1 if before else 0]):  # both halves of its slots go without naming it
            atom.roles |= VANISHED
        left = [mul((units[0], inner))] if before else []
        right = [mul((units[-1], inner))] if before + 1 < outer.size else []
        return cat([*left, split[0]]), cat([split[1], *right])


def _shown(axis: Axis) -> str:
    return "×".join(str(f.size) if is_static(f.size) else "dynamic" for f in factors_of(axis))


Keep = Mapping[Atom, np.ndarray]
"""Which slots stay: a boolean array per free atom; an atom not in it stays whole."""


def mask(axis: Axis, keep: Keep, probe: int = 0) -> np.ndarray | None:
    """The boolean mask of an axis from those of its atoms; None where all of it stays.

    A Cat's mask is the concatenation of its parts' masks, a Mul's their outer product. Dynamic parts have the
    size they have at `probe`.
    """
    if not any(atom in keep for atom in atoms_of(axis)):
        return None
    return _full_mask(axis, keep, probe)


def _full_mask(axis: Axis, keep: Keep, probe: int) -> np.ndarray:
    axis = resolve(axis)
    if isinstance(axis, Atom):
        if axis in keep:
            return keep[axis]
        return np.ones(at(axis.size, probe), dtype=bool)
    if isinstance(axis, Run):
        stop = axis.start + at(axis.size, probe)
        return (
            keep[axis.whole][axis.start : stop]
            if axis.whole in keep
            else np.ones(stop - axis.start, dtype=bool)
        )
    if isinstance(axis, Cat):
        return np.concatenate([_full_mask(part, keep, probe) for part in parts_of(axis)])
    assert isinstance(axis, Mul)
    total = np.ones(1, dtype=bool)
    for factor in axis.factors:
        total = np.logical_and.outer(total, _full_mask(factor, keep, probe)).ravel()
    return total
