"""How the values of options are written: durations, shares, sizes, shapes, names with a closest match. ValueError says
what is wrong with a text, and what to write."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass

DURATIONS_MS = {"us": 1e-3, "ms": 1.0, "s": 1e3, "min": 6e4, "h": 3.6e6}
SIZES = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
MOST_SLOTS = 1 << 20
"""That a range of slots may name."""
NUMBER = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*([a-zA-Z%]*)")


def closest(value: str, what: str, names: Collection[str]) -> str:
    """`value` if it is one of `names`, in lower case where only that is one; otherwise a ValueError that names the
    closest."""
    for spelled in (value, value.lower()):
        if spelled in names:
            return spelled
    close = difflib.get_close_matches(value, names, n=1, cutoff=0.5)
    hint = f"did you mean '{close[0]}'?" if close else f"choose from {', '.join(names)}"
    raise ValueError(f"unknown {what} '{value}': {hint}")


def quantity(text: str, what: str, example: str) -> tuple[float, str]:
    """A number of zero or more and its unit in lower case, `` when there is none."""
    match = NUMBER.fullmatch(text)
    if match is None:
        raise ValueError(f"'{text}' is not {what}: write for example {example}")
    return float(match[1]), match[2].lower()


def ratio(text: str) -> float:
    """A share to remove, `0.5` or `50%`, in [0, 1)."""
    number = text[:-1].strip() if text.endswith("%") else text
    try:
        value = float(number) / (100 if text.endswith("%") else 1)
    except ValueError as error:
        raise ValueError(f"'{text}' is not a number: 0.5 or 50% removes half") from error
    if not 0 <= value < 1:
        raise ValueError(f"{text} is outside [0, 1): 0.5 removes half")
    return value


def share(text: str) -> float:
    """`5%` or `0.05`, in [0, 1]."""
    number, unit = quantity(text, "a share", "0.05 or 5%")
    value = number / 100 if unit == "%" else number
    if unit not in {"", "%"} or value > 1:
        raise ValueError(f"'{text}' is not a share between 0 and 1: write for example 0.05 or 5%")
    return value


def kept_share(text: str) -> float:
    """A share to keep, `0.5` or `50%`, in (0, 1]."""
    value = share(text)
    if value == 0:
        raise ValueError(f"{text} is outside (0, 1]: 0.5 keeps half")
    return value


def duration_ms(text: str) -> float:
    """`5ms`, `200us`, `0.1s`, in milliseconds, above zero."""
    number, unit = quantity(text, "a duration", "5ms")
    if unit not in DURATIONS_MS:
        raise ValueError(f"'{text}' needs a unit ({', '.join(DURATIONS_MS)}): write for example 5ms")
    if number <= 0:
        raise ValueError(f"'{text}' must be above zero")
    return number * DURATIONS_MS[unit]


def duration_s(text: str) -> float:
    """`10min`, `90s` or plain seconds, in seconds, above zero."""
    return duration_ms(text if text[-1:].isalpha() else f"{text}s") / 1e3


def speedup(text: str) -> float:
    """`2` or `2x`: times faster, above 1."""
    number, unit = quantity(text, "a speed-up", "2 or 1.5x")
    if unit not in {"", "x"} or number <= 1:
        raise ValueError(f"'{text}' is not a speed-up above 1: write for example 2 or 1.5x")
    return number


def decibels(text: str) -> float:
    """`20dB` or `20`: decibels of quality."""
    number, unit = quantity(text, "a quality", "20dB")
    if unit not in {"", "db"}:
        raise ValueError(f"'{text}' is not a quality in decibels: write for example 20dB")
    return number


def rate(text: str) -> float:
    """Frames or samples per second, above zero."""
    number, unit = quantity(text.removesuffix("/s"), "a rate", "30")
    if unit not in {"", "fps"} or number <= 0:
        raise ValueError(f"'{text}' is not a rate in frames per second: write for example 30")
    return number


def size(text: str) -> int:
    """`4GiB`, `500MB` or plain bytes, in bytes, above zero."""
    number, unit = quantity(text, "a size", "4GiB")
    if (unit and unit not in SIZES) or number <= 0:
        raise ValueError(f"'{text}' is not a size: write for example 4GiB or 500MB")
    return int(number * SIZES[unit or "b"])


def align(text: str) -> str | int:
    """`auto` or a channel multiple of at least 1."""
    if text == "auto":
        return text
    if text.isascii() and text.isdigit() and int(text) >= 1:
        return int(text)
    raise ValueError(f"'{text}' is neither auto nor a whole number of at least 1")


@dataclass(frozen=True)
class InputShape:
    """`--input name:1x3x224x224`, or three shapes, `name:min|opt|max`, for a range of sizes."""

    name: str
    shapes: tuple[tuple[int, ...], ...]


def input_shape(text: str) -> InputShape:
    """Read an `--input`. The name may hold colons: the shape follows the last one."""
    example = "write name:1x3x224x224, or name:1x3x224x224|8x3x224x224|16x3x224x224 for min|opt|max"
    name, colon, tail = text.rpartition(":")
    if not colon or not name:
        raise ValueError(f"'{text}' has no name and shape: {example}")
    shapes = tuple(_dimensions(part, text, example) for part in tail.split("|"))
    if len(shapes) not in {1, 3}:
        raise ValueError(f"'{text}' has {len(shapes)} shapes, not one or three: {example}")
    if len({len(shape) for shape in shapes}) > 1:
        raise ValueError(f"'{text}' has shapes of different ranks: {example}")
    if len(shapes) == 3 and any(not low <= best <= high for low, best, high in zip(*shapes, strict=True)):
        raise ValueError(f"'{text}' is not ordered: every dimension must be min <= opt <= max")
    return InputShape(name, shapes)


def _dimensions(part: str, text: str, example: str) -> tuple[int, ...]:
    sizes = part.split("x")
    if not all(one.isascii() and one.isdigit() and len(one) < 19 and int(one) > 0 for one in sizes):
        raise ValueError(f"'{text}': '{part}' is not whole numbers above zero joined by x: {example}")
    return tuple(int(one) for one in sizes)


def pair(text: str) -> tuple[str, str]:
    """KEY=VALUE as (key, value)."""
    key, equals, value = (part.strip() for part in text.partition("="))
    if not equals or not key or not value:
        raise ValueError(f"'{text}' is not KEY=VALUE: write for example workspace=4GiB")
    return key, value


def amount_kept(text: str) -> float | int:
    """`16` slots, or the share of them `25%` or `0.25`, above zero."""
    if text.isascii() and text.isdigit() and 0 < int(text) < 1 << 31:
        return int(text)
    value = share(text)
    if value == 0:
        raise ValueError(f"{text} leaves nothing: write for example 16 or 25%")
    return value


def slots(text: str) -> tuple[int, ...]:
    """`0-15,31`: numbers of slots, from 0, each once and in order."""
    found: set[int] = set()
    for part in text.replace(" ", "").split(","):
        first, dash, last = part.partition("-")
        ends = (first, last if dash else first)
        if not all(end.isascii() and end.isdigit() and len(end) < 8 for end in ends):
            raise ValueError(f"'{text}' is no list of slots: write for example 0-15,31")
        if int(ends[1]) - int(ends[0]) >= MOST_SLOTS:
            raise ValueError(f"'{part}' is more than {MOST_SLOTS} slots")
        found.update(range(int(ends[0]), int(ends[1]) + 1))
    return tuple(sorted(found))


def names(text: str) -> tuple[str, ...]:
    """Names with commas between them, one at least."""
    found = tuple(part.strip() for part in text.split(",") if part.strip())
    if not found:
        raise ValueError(f"'{text}' names nothing: write for example auto,l2")
    return found


def names_of(what: str, names: Collection[str]) -> Callable[[str], tuple[str, ...]]:
    """A reader of a comma-separated list of names."""

    def read(text: str) -> tuple[str, ...]:
        return tuple(closest(one.strip(), what, names) for one in text.split(",") if one.strip())

    return read
