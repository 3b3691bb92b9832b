"""What the page of a gate's history shows: the change of each model, run after run, with its interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sparsecc.report.charts import WIDTH, Tick, round_values
from sparsecc.report.numbers import plural

HEIGHT = 160
"""Height of one chart in SVG units."""
NARROWEST = 0.02
"""The vertical axis spans at least twice this change, so that noise does not look like a cliff."""


@dataclass(frozen=True)
class Point:
    """One run: where it lies, where its interval begins and ends (SVG units from the top), what it was."""

    x: float
    y: float
    top: float
    bottom: float
    verdict: str
    label: str


@dataclass(frozen=True)
class Trend:
    """The history of one model."""

    name: str
    note: str
    points: Sequence[Point]
    ticks: Sequence[Tick]


@dataclass(frozen=True)
class TrendPage:
    """Everything the template draws."""

    title: str
    trends: Sequence[Trend]

    @classmethod
    def of(cls, entries: Sequence[Mapping[str, Any]]) -> TrendPage:
        """Gather it from the lines of a history, oldest first; runs that timed nothing are only counted."""
        names = dict.fromkeys(str(entry.get("name", "")) for entry in entries)
        trends = [_trend(name, [e for e in entries if str(e.get("name", "")) == name]) for name in names]
        return cls("Latency over time", trends)


def _trend(name: str, entries: Sequence[Mapping[str, Any]]) -> Trend:
    timed = [entry for entry in entries if "change" in entry]
    found = [str(entry.get("verdict", "")) for entry in entries]
    counts = ", ".join(f"{found.count(verdict)} {verdict}" for verdict in dict.fromkeys(found))
    note = f"{plural(len(entries), 'run')}: {counts}"
    if not timed:
        return Trend(name, note, (), ())
    reach = 1.1 * max(NARROWEST, *(abs(float(e[key])) for e in timed for key in ("low", "high")))
    step = WIDTH / len(timed)

    def down(change: float) -> float:
        return round(HEIGHT * (reach - change) / (2 * reach), 2)

    points = [
        Point(
            round((number + 0.5) * step, 2),
            down(float(entry["change"])),
            down(float(entry["high"])),
            down(float(entry["low"])),
            str(entry.get("verdict", "")),
            _label(entry),
        )
        for number, entry in enumerate(timed)
    ]
    ticks = [Tick(down(value), f"{value:+.0%}") for value in round_values(-reach, reach)]
    return Trend(name, note, points, ticks)


def _label(entry: Mapping[str, Any]) -> str:
    """When, which revision, how much, and the milliseconds of both models."""
    words = [str(entry.get("when", "")), str(entry.get("revision", ""))]
    words.append(f"{float(entry['change']):+.1%} ({float(entry['low']):+.1%} to {float(entry['high']):+.1%})")
    words.append(f"{float(entry['baseline_ms']):.3g} ms before, {float(entry['current_ms']):.3g} ms now")
    return ", ".join(word for word in words if word)
