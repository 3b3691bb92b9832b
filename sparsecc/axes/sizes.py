"""Sizes that may depend on dynamic dimensions.

A size is an int when it is the same for every input, or a tuple with one int per *probe*: the whole model is
inferred at several assignments of its symbolic dimensions, and what differs between them is dynamic. Products
and sums of sizes are then exact wherever they are equal at every probe (a polynomial identity test), with no
symbolic algebra.
"""

from __future__ import annotations

from collections.abc import Iterable
from operator import add, mul, sub

Size = int | tuple[int, ...]

OPAQUE = 720_720 * 1024
"""Sizes that nobody can know are numbers from here on, others at every probe. No real axis is as long."""

STEP = 720_720
"""They lie so far apart, a number that 1 to 16 divide: strides, splits and pools leave them different."""

DIVIDED = 256
"""What they may be divided by in all and still be known for what they are."""


def at(size: Size, probe: int) -> int:
    """The size at one probe."""
    return size if isinstance(size, int) else size[probe]


def joined(values: tuple[int, ...]) -> Size:
    """One size from its value at each probe."""
    return values[0] if all(v == values[0] for v in values) else values


def is_static(size: Size) -> bool:
    """Whether it is the same for every input."""
    return isinstance(size, int)


def is_unknown(size: Size) -> bool:
    """Whether nobody can know it, not even for inputs of given sizes."""
    return isinstance(size, tuple) and min(size) >= OPAQUE // DIVIDED


def times(a: Size, b: Size) -> Size:
    """a * b at every probe."""
    if isinstance(a, int) and isinstance(b, int):
        return a * b
    return _each(a, b, mul)


def plus(a: Size, b: Size) -> Size:
    """a + b at every probe."""
    if isinstance(a, int) and isinstance(b, int):
        return a + b
    return _each(a, b, add)


def minus(a: Size, b: Size) -> Size:
    """a - b at every probe."""
    if isinstance(a, int) and isinstance(b, int):
        return a - b
    return _each(a, b, sub)


def quotient(a: Size, b: Size) -> Size | None:
    """a / b where it is exact and positive at every probe, else None."""
    if isinstance(a, int) and isinstance(b, int):
        return a // b if b > 0 and a > 0 and a % b == 0 else None
    pairs = _pairs(a, b)
    if any(y <= 0 or x <= 0 or x % y for x, y in pairs):
        return None
    return joined(tuple(x // y for x, y in pairs))


def smaller(a: Size, b: Size) -> bool:
    """Whether a < b at every probe."""
    if isinstance(a, int) and isinstance(b, int):
        return a < b
    return all(x < y for x, y in _pairs(a, b))


def product(sizes: Iterable[Size]) -> Size:
    """The product of all; 1 of none."""
    total: Size = 1
    for size in sizes:
        total = times(total, size)
    return total


def _pairs(a: Size, b: Size) -> list[tuple[int, int]]:
    n = len(a) if isinstance(a, tuple) else len(b) if isinstance(b, tuple) else 1
    return [(at(a, i), at(b, i)) for i in range(n)]


def _each(a: Size, b: Size, op: object) -> Size:
    assert callable(op)
    return joined(tuple(op(x, y) for x, y in _pairs(a, b)))
