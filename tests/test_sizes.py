"""Sizes with one value per probe behave like that many plain sizes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsecc.axes.sizes import Size, at, is_static, joined, minus, plus, product, quotient, smaller, times

PROBES = 3
SIZES = st.one_of(st.integers(0, 12), st.tuples(*[st.integers(0, 12)] * PROBES).map(joined))


def values(size: Size) -> list[int]:
    return [at(size, probe) for probe in range(PROBES)]


@pytest.mark.parametrize(
    ("of_sizes", "of_values"),
    [(times, lambda a, b: a * b), (plus, lambda a, b: a + b), (minus, lambda a, b: a - b)],
)
@given(a=SIZES, b=SIZES)
def test_arithmetic_is_that_of_every_probe(
    of_sizes: Callable[[Size, Size], Size], of_values: Callable[[int, int], int], a: Size, b: Size
) -> None:
    found = of_sizes(a, b)
    assert values(found) == [of_values(x, y) for x, y in zip(values(a), values(b), strict=True)]
    assert is_static(found) == (len(set(values(found))) == 1)


@given(SIZES, SIZES)
def test_a_quotient_is_exact_and_positive_or_none(a: Size, b: Size) -> None:
    pairs = list(zip(values(a), values(b), strict=True))
    exact = all(x > 0 and y > 0 and x % y == 0 for x, y in pairs)
    found = quotient(a, b)
    assert (found is not None) == exact
    if found is not None:
        assert values(found) == [x // y for x, y in pairs]


@given(SIZES, SIZES)
def test_smaller_means_at_every_probe(a: Size, b: Size) -> None:
    assert smaller(a, b) == all(x < y for x, y in zip(values(a), values(b), strict=True))


@given(st.lists(SIZES, max_size=4))
def test_the_product_of_many(sizes: list[Size]) -> None:
    wanted = [1] * PROBES
    for size in sizes:
        wanted = [w * v for w, v in zip(wanted, values(size), strict=True)]
    assert values(product(sizes)) == wanted
