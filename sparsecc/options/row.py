"""What a row of the table of options says, and the kinds of values that options have."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from decimal import Decimal
from enum import Flag, auto
from typing import Any, Generic, TypeVar, overload

from sparsecc.errors import InputError
from sparsecc.escaping import one_line
from sparsecc.options import reading

T = TypeVar("T")

StrPath = str | os.PathLike[str]
Shape = Sequence[int] | Sequence[Sequence[int]]
"""A shape, or (least, usual, largest) shapes of an input with a range."""
Inputs = Mapping[str, Shape]
Pairs = Mapping[str, str]
Libraries = Sequence[StrPath]
Data = StrPath | Iterable[object] | Callable[[], Iterable[object]]
"""Where samples come from: a path, or in Python the samples themselves, as arrays, mappings or what yields them."""
Score = str | Callable[[Callable[[Mapping[str, Any]], dict[str, Any]]], float]
"""What scores a model: `file.py:function`, or in Python a function of `run(feeds) -> outputs`."""
Hook = str | Callable[[Any], object]
"""Where results are logged: `mlflow`, `file.py:function`, or in Python a function of the result."""


@dataclass(frozen=True)
class Kind(Generic[T]):
    """What values an option has.

    `read` turns the text of a command line or a recipe into a value, `check` a value of Python or of a recipe into
    the form in which it is kept; ValueError says what is wrong. An option of a `repeated` kind is given as often as it
    has values; its `check` takes their texts too. `names` are all values there are, where that is known; those of
    targets are looked up when they are read.
    """

    metavar: str
    read: Callable[[str], T]
    check: Callable[[Any], T]
    repeated: bool = False
    names: Collection[str] = ()

    def take(self, value: Any) -> T:
        """A value as text or as itself."""
        return self.read(value.strip()) if isinstance(value, str) else self.check(value)


class By(Flag):
    """What may set an option."""

    COMMAND_LINE = auto()
    PYTHON = auto()
    RECIPE = auto()


CALL = By.COMMAND_LINE | By.PYTHON
"""An option of one call, which no recipe holds."""
ANY = CALL | By.RECIPE


@dataclass(frozen=True)
class Row:
    """One option. `flags` are its spellings on the command line, the first the one that messages name.

    `default` None is no value. `was` are the names it had before in Python and recipes, `was_flags` those on the
    command line. `is_common` rows stand in the short help. `names_code` says that its value may name a function to
    run, and that a compile is another one without it: a file sets it only where it names samples beside it.
    `never_in_a_file` says what the value names that no file may, `refused_in_a_file` the same of some values. Of the
    rows that are `alone` a compile takes one; `is_goal` ones are met by measuring, `is_limit` ones bound what may be
    lost. `tries` is the option for which a search tries these values.
    """

    name: str
    default: Any
    kind: Kind[Any]
    help: str
    group: str
    by: By
    flags: tuple[str, ...]
    was: tuple[str, ...] = ()
    was_flags: tuple[str, ...] = ()
    is_common: bool = False
    names_code: bool = False
    never_in_a_file: str = ""
    refused_in_a_file: Callable[[Any], str] | None = None
    alone: bool = False
    is_goal: bool = False
    is_limit: bool = False
    tries: str = ""

    @property
    def flag(self) -> str:
        return next(flag for flag in self.flags if flag.startswith("--"))

    def about(self, names: Collection[str] | None = None) -> str:
        """The help, in which {names} stands for the values there are."""
        if "{names}" not in self.help:
            return self.help
        return self.help.replace("{names}", ", ".join(self.kind.names if names is None else names))

    @property
    def shown_default(self) -> str | None:
        """The default as a user would write it; None where leaving the option out says it all."""
        if self.default is None or isinstance(self.default, bool) or self.default in ((), {}):
            return None
        if self.kind.metavar == "SIZE":
            return f"{self.default >> 30}GiB"
        many = isinstance(self.default, tuple)
        return ",".join(str(one or "none") for one in self.default) if many else str(self.default)

    def is_refused_in_a_file(self, value: Any) -> bool:
        """Whether the command line alone may say this value, of an option that a file may name."""
        return self.refused_in_a_file is not None and bool(self.refused_in_a_file(self.take(value)))

    def take(self, value: Any) -> Any:
        """The value in the form in which it is kept. InputError says what is wrong with it."""
        try:
            return value if value is None and self.default is None else self.kind.take(value)
        except ValueError as error:
            raise InputError(f"{self.flag}: {error}") from error


@dataclass(frozen=True)
class _Spec:
    """A row whose name is still to come: the field's."""

    kind: Kind[Any]
    about: dict[str, Any]


@overload
def option(default: None, kind: Kind[T], help: str, group: str, **more: Any) -> T | None: ...
@overload
def option(default: T, kind: Kind[T], help: str, group: str, **more: Any) -> T: ...
def option(default: Any, kind: Kind[T], help: str, group: str, *, by: By = ANY, **more: Any) -> Any:
    """A field of a table of options. `more` are the columns of `Row` that differ from their defaults."""
    about = {"default": default, "help": help, "group": group, "by": by, **more}
    metadata = {"row": _Spec(kind, about)}
    if isinstance(default, dict):
        return field(default_factory=dict, metadata=metadata)
    return field(default=default, metadata=metadata)


def rows_of(table: type) -> dict[str, Row]:
    """The rows of a table by name, in the order in which they stand."""
    found = {}
    for one in fields(table):
        if (spec := one.metadata.get("row")) is not None:
            flag = f"--{one.name.replace('_', '-')}"
            flags = spec.about.get("flags", (f"--no-{flag[2:]}" if spec.about["default"] is True else flag,))
            found[one.name] = Row(one.name, kind=spec.kind, **{**spec.about, "flags": flags})
    return found


# The kinds of values ---------------------------------------------------------------------------------


def _number(read: Callable[[str], object]) -> Callable[[Any], float]:
    """Checks a plain number as its text is checked; whole numbers stay whole. True is no number."""

    def check(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{_short(value)} is no number")
        if not math.isfinite(value):
            raise ValueError(f"{value} is no finite number")
        read(str(value) if isinstance(value, int) else f"{Decimal(repr(float(value))):f}")
        return value

    return check


def amount(metavar: str, read: Callable[[str], float], unit: str = "") -> Kind[float]:
    """A number; `unit` is that of one without."""
    return Kind(metavar, read, _number(lambda text: read(text + unit)))


def memory(least: int = 0) -> Kind[int]:
    """Bytes, at least so many."""

    def read(text: str) -> int:
        found = reading.size(text)
        if found < least:
            raise ValueError(f"{text} bytes is too little: give {least >> 20}MiB or more")
        return found

    check = _number(read)
    return Kind("SIZE", read, lambda value: int(check(value)))


def _short(value: Any) -> str:
    return one_line(repr(value), 60)


def whole(least: int) -> Kind[int]:
    """Whole numbers of at least that."""

    def check(value: Any) -> int:
        if type(value) is not int or value < least:
            raise ValueError(f"{_short(value)} is no whole number of at least {least}")
        return value

    def read(text: str) -> int:
        return check(int(text) if text.isascii() and text.isdigit() and len(text) < 19 else text)

    return Kind("N", read, check)


def choice(what: str, names: Collection[str]) -> Kind[str]:
    """One of these names, in any case."""

    def read(text: str) -> str:
        return reading.closest(text, what, names)

    def check(value: Any) -> str:
        raise ValueError(f"{_short(value)} is no {what}: choose from {', '.join(names)}")

    return Kind(f"[{'|'.join(names)}]", read, check, names=tuple(names))


def text(metavar: str) -> Kind[str]:
    """Any text."""
    return Kind(metavar, str, _no_text)


def _no_text(value: Any) -> str:
    raise ValueError(f"{_short(value)} is no text")


def word(metavar: str) -> Kind[str]:
    """A word out of some table, or a few, never a path."""

    def read(text: str) -> str:
        if re.fullmatch(r"[\w.:@+, -]*", text, re.ASCII) is None:
            raise ValueError(f"{_short(text)} is no name")
        return text

    return Kind(metavar, read, _no_text)


def source(metavar: str) -> Kind[StrPath]:
    """A path, as text or as an object."""

    def check(value: Any) -> str:
        return str(os.fspath(value)) if isinstance(value, os.PathLike) else _no_text(value)

    return Kind(metavar, str, check)


def _patterns(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(part, str) for part in value):
        raise ValueError(f"{_short(value)} is no list of names")
    return tuple(value)


def _libraries(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(one, str | os.PathLike) for one in value):
        raise ValueError(f"{_short(value)} is no list of paths")
    return tuple(str(os.fspath(one)) for one in value)


def _named_io(value: Any) -> tuple[str, ...]:
    """Names, or yes and no as recipes once had them: all of them or none."""
    return (("*",) if value else ()) if isinstance(value, bool) else _patterns(value)


def listed(metavar: str, read: Callable[[str], tuple[T, ...]]) -> Kind[Sequence[T]]:
    """Several values with commas between them; `read` reads such a text."""

    def check(value: Any) -> Sequence[T]:
        if not isinstance(value, list | tuple):
            raise ValueError(f"{_short(value)} is no list: write for example {metavar.lower()},…")
        return tuple(part for one in value for part in (read(one) if isinstance(one, str) else (one,)))

    return Kind(metavar, read, check)


def _inputs(value: Any) -> dict[str, Shape]:
    """Name -> shape or three shapes, from a mapping, pairs, or texts `x:1x3`."""
    pairs = value.items() if isinstance(value, Mapping) else value
    if not isinstance(value, Mapping | list | tuple):
        raise ValueError(f"{_short(value)} is no mapping of input names to shapes")
    found: dict[str, Shape] = {}
    for one in pairs:
        if isinstance(one, str):
            read = reading.input_shape(one)
            found[read.name] = read.shapes[0] if len(read.shapes) == 1 else read.shapes
        elif isinstance(one, list | tuple) and len(one) == 2 and isinstance(one[0], str):
            found[one[0]] = _shape(*one)
        else:
            raise ValueError(f"{_short(one)} is no input name with its shape")
    return found


def _shape(name: str, shape: Any) -> Any:
    if are_sizes(shape):
        return tuple(shape)
    if isinstance(shape, list | tuple) and len(shape) == 3 and all(are_sizes(one) for one in shape):
        return tuple(tuple(one) for one in shape)
    raise ValueError(
        f"the shape of input '{name}' must be a list of sizes, or three of those; write [1, 3, 224, 224]"
    )


def are_sizes(shape: Any) -> bool:
    """Whether it is a shape: a list of whole numbers, none negative."""
    return isinstance(shape, list | tuple) and all(type(d) is int and d >= 0 for d in shape)


def _pairs(value: Any) -> dict[str, Any]:
    """Key -> value text in the order of the keys, from a mapping or from texts KEY=VALUE."""
    if isinstance(value, Mapping) and all(
        isinstance(key, str) and isinstance(one, str | int | float) for key, one in value.items()
    ):
        given = {key: str(one) for key, one in value.items()}
    elif isinstance(value, list | tuple) and all(isinstance(one, str) for one in value):
        given = dict(reading.pair(one) for one in value)
    else:
        raise ValueError(f"{_short(value)} is no mapping of keys to values")
    return dict(sorted(given.items()))


def per_pattern(metavar: str, read: Callable[[str], T], check: Callable[[Any], T]) -> Kind[Mapping[str, T]]:
    """A value for each pattern of names, `PATTERN=VALUE`."""

    def one(text: str) -> tuple[str, T]:
        pattern, equals, value = (part.strip() for part in text.rpartition("="))
        if not equals or not pattern or not value:
            raise ValueError(f"'{_short(text)}' is not {metavar}: write the pattern, =, and the value")
        return pattern, read(value)

    def mapping(value: Any) -> dict[str, T]:
        if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
            return {k: read(v) if isinstance(v, str) else check(v) for k, v in value.items()}
        if isinstance(value, list | tuple) and all(isinstance(text, str) for text in value):
            return dict(map(one, value))
        raise ValueError(f"{_short(value)} is no mapping of patterns to values")

    return Kind(metavar, lambda text: dict([one(text)]), mapping, repeated=True)


def _slots(value: Any) -> tuple[int, ...]:
    if not are_sizes(value):
        raise ValueError(f"{_short(value)} is no list of slots: write [0, 1, 5] or '0-15,31'")
    return tuple(sorted(set(value)))


def _amount_kept(value: Any) -> float | int:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{_short(value)} is no number of slots, and no share of them")
    return reading.amount_kept(str(value) if isinstance(value, int) else f"{Decimal(repr(value)):f}")


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{_short(value)} is neither true nor false")
    return value


def _align(value: Any) -> str | int:
    if type(value) is not int or value < 1:
        raise ValueError(f"{_short(value)} is neither auto nor a whole number of at least 1")
    return value


FLAG: Kind[bool] = Kind("", _flag, _flag)
RATIO = amount("SHARE", reading.ratio)
SHARE = amount("SHARE", reading.share)
KEPT = amount("SHARE", reading.kept_share)
DROP: Kind[float] = Kind(
    "SHARE", reading.share, _number(lambda text: reading.quantity(text, "a loss", "0.01"))
)
TIMES = amount("TIMES", reading.speedup)
MILLISECONDS = amount("TIME", reading.duration_ms, "ms")
SECONDS = amount("TIME", reading.duration_s)
RATE = amount("RATE", reading.rate)
DECIBELS = amount("DB", reading.decibels)
SIZE = memory()
ALIGN: Kind[str | int] = Kind("auto|N", reading.align, _align)
NAMED_IO: Kind[Sequence[str]] = Kind("NAME", lambda one: (one,), _named_io, repeated=True)
PATTERNS: Kind[Sequence[str]] = Kind("PATTERN", lambda one: (one,), _patterns, repeated=True)
LIBRARIES: Kind[Libraries] = Kind("LIB", lambda one: (one,), _libraries, repeated=True)
INPUTS: Kind[Inputs] = Kind("NAME:SHAPE", lambda one: _inputs([one]), _inputs, repeated=True)
PAIRS: Kind[Pairs] = Kind("KEY=VALUE", lambda one: _pairs([one]), _pairs, repeated=True)
RATIOS = per_pattern("PATTERN=SHARE", reading.ratio, RATIO.check)
AMOUNTS = per_pattern("PATTERN=N|SHARE", reading.amount_kept, _amount_kept)
SLOTS = per_pattern("PATTERN=SLOTS", reading.slots, _slots)
