"""How far work is, told to whoever listens, and how much longer it takes, in words."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

Emit = Callable[[dict[str, Any]], None]

PATIENCE = 2.0
"""Seconds below which nothing is said."""
_KNOWN = 0.02
"""The share of the work that must be done before anything is known."""


def time_left(seconds: float, share: float) -> str:
    """In round numbers, for work of which a share took so many seconds; "" where it is short or unknown."""
    more = seconds / share - seconds if share > _KNOWN else 0.0
    if seconds < PATIENCE or more < PATIENCE:
        return ""
    if more > 90:
        return f"about {more / 60:.0f} min left"
    step = 5 if more >= 15 else 1
    return f"about {max(step, round(more / step) * step)} s left"


@dataclass(frozen=True)
class Record:
    """What a stage or a method did, for the report: its facts (plain JSON data) and how long it took."""

    name: str
    facts: Mapping[str, Any] | None = None
    seconds: float | None = None

    def to_json(self) -> dict[str, Any]:
        timed = {} if self.seconds is None else {"seconds": self.seconds}
        return {"name": self.name, **timed, **({} if self.facts is None else {"facts": dict(self.facts)})}


def nobody_listens(event: dict[str, Any]) -> None:
    """The listener of work that nobody watches."""


class Announced:
    """Work that tells how far it is; its fields stand where it is made."""

    emit: Emit
    span: tuple[float, float]
    since: float
    at: tuple[str, float]

    def note(self, name: str, facts: Mapping[str, Any] | None = None, *, begun: float | None = None) -> None:
        """Keep what a stage or method did; `begun` is when, by `time.perf_counter`."""
        raise NotImplementedError

    @contextmanager
    def stage(self, name: str, begin: float, end: float) -> Iterator[None]:
        """Announce a stage and keep how long it took; `progress` moves between these shares of the whole."""
        self._tell(name, begin)
        self.span, begun = (begin, end), time.perf_counter()
        self.since = begun
        yield
        self.note(name, begun=begun)

    @contextmanager
    def part(self, begin: float, end: float) -> Iterator[None]:
        """Inside, `progress` moves between these shares of the part of the stage that it moved in before."""
        span, since = self.span, self.since
        width = span[1] - span[0]
        self.span, self.since = (span[0] + width * begin, span[0] + width * end), time.perf_counter()
        yield
        self.span, self.since = span, since

    def progress(self, what: str, share: float) -> None:
        """Tell how far the part under way is, and with what; how long it will take where that is long."""
        begin, end = self.span
        self._tell(what, begin + (end - begin) * share, time_left(time.perf_counter() - self.since, share))

    def _tell(self, stage: str, share: float, note: str = "") -> None:
        self.at = stage, share
        self.emit({"stage": stage, "share": share, **({"note": note} if note else {})})

    def remark(self, note: str) -> None:
        """Tell whoever follows every step (`-v`) something of the stage under way."""
        self._tell(*self.at, note)

    def say(self, text: str, **figures: Any) -> None:
        """Tell the user a sentence now, with its figures for programs, as an event of the stage under way."""
        stage, share = self.at
        self.emit({"stage": stage, "share": share, "say": text, **figures})
