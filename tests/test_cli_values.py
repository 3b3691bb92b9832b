"""How option values are read, one line per case."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsecc.options import reading as values
from sparsecc.options.reading import InputShape
from sparsecc.report import numbers

GOOD: list[tuple[Callable[[str], Any], str, Any]] = [
    (values.ratio, "0", 0.0),
    (values.ratio, "0.5", 0.5),
    (values.share, "5%", 0.05),
    (values.share, "0.01", 0.01),
    (values.share, "100%", 1.0),
    (values.duration_ms, "5ms", 5.0),
    (values.duration_ms, "200us", 0.2),
    (values.duration_ms, "0.1s", 100.0),
    (values.duration_ms, ".5 ms", 0.5),
    (values.duration_s, "10min", 600.0),
    (values.duration_s, "90", 90.0),
    (values.speedup, "2", 2.0),
    (values.speedup, "1.5x", 1.5),
    (values.rate, "30", 30.0),
    (values.rate, "29.97fps", 29.97),
    (values.size, "4GiB", 4 << 30),
    (values.size, "500MB", 500_000_000),
    (values.size, "1024", 1024),
    (values.align, "auto", "auto"),
    (values.align, "8", 8),
    (values.input_shape, "x:1x3x224x224", InputShape("x", ((1, 3, 224, 224),))),
    (values.input_shape, "scope/x:0:4", InputShape("scope/x:0", ((4,),))),
    (values.input_shape, "x:1x8|4x8|9x8", InputShape("x", ((1, 8), (4, 8), (9, 8)))),
    (values.names_of("kind", ["heads", "experts"]), "heads, experts", ("heads", "experts")),
]

BAD: list[tuple[Callable[[str], Any], str, str]] = [
    (values.ratio, "1", "outside [0, 1)"),
    (values.ratio, "-0.1", "outside [0, 1)"),
    (values.ratio, "nan", "outside [0, 1)"),
    (values.ratio, "half", "not a number"),
    (values.share, "101%", "share between 0 and 1"),
    (values.share, "5ms", "share between 0 and 1"),
    (values.share, "-1", "not a share"),
    (values.duration_ms, "5", "needs a unit"),
    (values.duration_ms, "0ms", "above zero"),
    (values.duration_ms, "5 parsecs", "needs a unit"),
    (values.duration_ms, "fast", "not a duration"),
    (values.duration_ms, "1e999s", "not a duration"),
    (values.speedup, "1", "above 1"),
    (values.speedup, "2ms", "above 1"),
    (values.rate, "0", "frames per second"),
    (values.size, "4GiBs", "not a size"),
    (values.size, "0", "not a size"),
    (values.align, "0", "neither auto"),
    (values.align, "²", "neither auto"),
    (values.input_shape, "x", "no name and shape"),
    (values.input_shape, ":1x3", "no name and shape"),
    (values.input_shape, "x:", "whole numbers"),
    (values.input_shape, "x:1x-3", "whole numbers"),
    (values.input_shape, "x:1x0", "whole numbers"),
    (values.input_shape, "x:1x3|2x3", "not one or three"),
    (values.input_shape, "x:1x3|2x3|4", "different ranks"),
    (values.input_shape, "x:4x3|2x3|8x3", "not ordered"),
    (values.input_shape, "x:" + "9" * 40, "whole numbers"),
    (values.names_of("kind", ["heads", "experts"]), "heds", "did you mean 'heads'?"),
    (values.names_of("kind", ["heads", "experts"]), "zzz", "choose from heads, experts"),
]


@pytest.mark.parametrize(("read", "text", "expected"), GOOD)
def test_good(read: Callable[[str], Any], text: str, expected: Any) -> None:
    assert read(text) == expected


@pytest.mark.parametrize(("read", "text", "expected"), BAD)
def test_bad(read: Callable[[str], Any], text: str, expected: str) -> None:
    with pytest.raises(ValueError, match=re.escape(expected)):
        read(text)


@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    for read in {read for read, _, _ in GOOD + BAD}:
        with contextlib.suppress(ValueError):
            read(text)


WRITTEN: list[tuple[str, str]] = [
    (numbers.count(4_089_184_256), "4.09 G"),
    (numbers.count(999.7), "999.7"),
    (numbers.count(999_900), "1000 k"),
    (numbers.count(0), "0"),
    (numbers.count(None), "–"),
    (numbers.size(97_800_000), "97.8 MB"),
    (numbers.size(12), "12 B"),
    (numbers.percent(0.5123), "51.2 %"),
    (numbers.milliseconds(27.43), "27.4 ms"),
    (numbers.milliseconds(1234.5), "1.23 s"),
    (numbers.milliseconds(0.0123), "12.3 us"),
    (numbers.milliseconds(999.9), "1000 ms"),
    (numbers.change(100, 49), "−51.0 %"),
    (numbers.change(100, 150), "+50.0 %"),
    (numbers.change(100, 100), "±0.0 %"),
    (numbers.change(0, 5), "–"),
    (numbers.change(5, None), "–"),
    (numbers.plural(1, "group"), "1 group"),
    (numbers.plural(2, "group"), "2 groups"),
]


@pytest.mark.parametrize(("written", "expected"), WRITTEN)
def test_numbers_are_written(written: str, expected: str) -> None:
    assert written == expected
