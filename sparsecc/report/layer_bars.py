"""The layers of a compile as bars: channels before and after, and the time that each takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sparsecc.report import numbers


@dataclass(frozen=True)
class LayerBar:
    """One bar: the channels of a node before and after, and its time; "" for times that were not measured."""

    name: str
    op: str
    before: int
    after: int
    width: float
    kept_width: float
    macs: str
    time: str
    time_change: str


def layer_bars(report: Mapping[str, Any]) -> list[LayerBar]:
    """In the model's order; layers without a width are left out."""
    rows = [row for row in report.get("layers") or () if row["before"] is not None]
    widest = max((row["before"] for row in rows), default=1)
    return [_bar(row, widest) for row in rows]


def _bar(row: Mapping[str, Any], widest: int) -> LayerBar:
    before, after = row["before"], row["after"]
    cut = row.get("macs_before") != row.get("macs_after")
    macs = numbers.change(row.get("macs_before"), row.get("macs_after")) if cut else ""
    # A square root, so that a layer of 16 channels beside one of 2,048 can still be seen.
    width, kept_width = ((100 * (channels / widest) ** 0.5) for channels in (before, after))
    times = row.get("ms_before"), row.get("ms_after")
    return LayerBar(
        str(row["name"] or "(no name)"),
        row["op"],
        before,
        after,
        round(width, 2),
        round(kept_width, 2),
        macs,
        _time(*times),
        "" if None in times else numbers.change(*times),
    )


def _time(before: float | None, after: float | None) -> str:
    """`1.25 ms → 640 us`; a dash where no kernel of its own computes it."""
    if before is None and after is None:
        return ""
    return f"{numbers.milliseconds(before)} → {numbers.milliseconds(after)}"


def times_note(report: Mapping[str, Any]) -> str:
    """How the times of layers were measured, and what all else takes; "" without any."""
    facts = report.get("layer_times")
    if not facts:
        return ""
    rest = _time(facts["rest"]["before_ms"], facts["rest"]["after_ms"])
    return (
        f"Time is the shortest of {facts['runs']} runs of each model in turn, by {facts['how']} ({facts['clock']} "
        "clock), which itself takes time: the sum is no latency. A dash: computed by the kernel of another layer. "
        f"All that is in no layer takes {rest}."
    )
