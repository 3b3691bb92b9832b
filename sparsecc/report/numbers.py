"""How numbers are written in tables and pages: three digits and a unit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

STEPS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def count(number: float | None) -> str:
    """4089184256 -> `4.09 G`; None -> a dash."""
    if number is None:
        return "–"
    for size, letter in STEPS:
        if abs(number) >= size:
            return (
                f"{number / size:.3g} {letter}"
                if abs(number) / size < 999.5
                else f"{number / size:.0f} {letter}"
            )
    return f"{number:g}"


def size(number: float | None) -> str:
    """Bytes, in decimal units: 97800000 -> `97.8 MB`."""
    return "–" if number is None else f"{count(number)}B" if number >= 1e3 else f"{number:g} B"


def percent(share: float | None) -> str:
    """0.512 -> `51.2 %`."""
    return "–" if share is None else f"{100 * share:.1f} %"


def milliseconds(number: float | None) -> str:
    """Three digits, in the unit that suits: 0.0123 -> `12.3 us`, 1234.5 -> `1.23 s`."""
    if number is None:
        return "–"
    for factor, unit in ((1e-3, "s"), (1.0, "ms"), (1e3, "us")):
        if number * factor >= 1 or unit == "us":
            return (
                f"{number * factor:.3g} {unit}"
                if number * factor < 999.5
                else f"{number * factor:.0f} {unit}"
            )
    raise AssertionError("unreachable: the last unit takes every number")


def change(before: float | None, after: float | None) -> str:
    """The relative change: 100 and 49 -> `−51.0 %`."""
    if not before or after is None:
        return "–"
    share = after / before - 1
    sign = "−" if share < 0 else "+" if share > 0 else "±"
    return f"{sign}{abs(100 * share):.1f} %"


def shapes(of: Mapping[str, Sequence[int]]) -> str:
    """`image 1x3x224x224, mask 1x12`."""
    return ", ".join(f"{name} {'x'.join(map(str, shape)) or 'a number'}" for name, shape in of.items())


def plural(number: int, noun: str) -> str:
    """1, `group` -> `1 group`; 3 -> `3 groups`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
