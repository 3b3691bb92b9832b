"""What the page of a search shows: one plot per cost, and a table of the points on the front."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sparsecc.report import numbers
from sparsecc.report.charts import Dot, Plot, original, plot
from sparsecc.report.trials import name_of

LABELS = {
    "latency": "latency, share of the dense model's",
    "macs": "multiply-accumulates, share of the dense model's",
    "bytes": "size, share of the dense model's",
}
QUALITY = {"score": "score of --evaluate", "quality_db": "worst part of the outputs, dB"}
CHOSEN = "chosen where nothing is asked for"
"""The fastest point that loses nothing measurable: what a compile without a goal takes."""
SHORT = "chosen"
LONGEST = 28
"""Letters of a label that fit between dots."""


@dataclass(frozen=True)
class FrontPage:
    """Everything the template draws. `ids` name the rows, which the dots of the plots lead to."""

    title: str
    cards: Sequence[tuple[str, str]]
    plots: Sequence[Plot]
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    ids: Sequence[str]
    on_front: int
    failed: Sequence[tuple[str, str]]
    versions: Sequence[tuple[str, str]]

    @classmethod
    def of(cls, found: Mapping[str, Any]) -> FrontPage:
        """Gather it from front.json: the points on a front first, the cheapest on top."""
        plots = [_plot(found, cost) for cost in found["fronts"]]
        columns = ("plan", "speed-up", "MACs left", "size left", QUALITY[found["quality"]], "compile it with")
        shown = list(dict.fromkeys(name for names in found["fronts"].values() for name in names))
        by_id = {point["id"]: point for point in found["points"]}
        ids = [*shown, *(name for name in by_id if name not in shown)]
        rows = [_row(by_id[name], found["chosen"]) for name in ids]
        failed = [(plan_text(row["options"]), row["error"]) for row in found["failed"]]
        versions = [(name, str(value)) for name, value in sorted(found["versions"].items())]
        title = found["model"]["name"]
        return cls(title, _cards(found), plots, columns, rows, ids, len(shown), failed, versions)


def plan_text(options: Mapping[str, Any]) -> str:
    """`ratio 0.5, int8`: what is not automatic, of the options of a point."""
    return name_of({"ratio": options["ratio"], "levers": {k: v for k, v in options.items() if k != "ratio"}})


def _cards(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    cards = [("points made", str(len(found["points"]))), ("failed", str(len(found["failed"])))]
    cards += [(f"on the front by {cost}", str(len(names))) for cost, names in found["fronts"].items()]
    if found["dense_quality"] is not None:
        cards.append((f"{QUALITY[found['quality']]} of the dense model", f"{found['dense_quality']:.4g}"))
    return cards


def _row(point: Mapping[str, Any], chosen: str | None) -> list[str]:
    shares = [numbers.percent(point.get("macs")), numbers.percent(point["bytes"] / point["dense_bytes"])]
    speed = f"{point['speedup']:.2f}x" if point.get("speedup") else "–"
    kept = "–" if point["quality"] is None else f"{point['quality']:.4g}"
    plan = f"{name_of(point)}, {CHOSEN}" if point["id"] == chosen else name_of(point)
    return [plan, speed, *shares, kept, point["compile"]]


def _plot(found: Mapping[str, Any], cost: str) -> Plot:
    """Points in their units; the dense model stands at its score, and where there is none, above all others."""
    prices, front = found["costs"][cost], found["fronts"][cost]
    points = [p for p in found["points"] if prices[p["id"]] is not None and p["quality"] is not None]
    dots = {p["id"]: _dot(p, prices[p["id"]], p["id"] in front, found["chosen"]) for p in points}
    dense = original(1.0, found["dense_quality"], [dot.y for dot in dots.values()])
    label = QUALITY[found["quality"]]
    return plot(LABELS[cost], label, [*dots.values(), dense], [dots[name] for name in front])


def _dot(point: Mapping[str, Any], price: float, is_on_front: bool, chosen: str | None) -> Dot:
    """The plan beside the dots on the front and those of one lever; a long one is only in the title."""
    name, is_plain = name_of(point), not point.get("levers") or not point["ratio"]
    told = f"{name} ({SHORT})" if point["id"] == chosen else name if is_on_front or is_plain else ""
    label = told if len(told) <= LONGEST else SHORT if point["id"] == chosen else ""
    title = f"{name}: {point['quality']:.4g} at {price:.3f}"
    kind = "after" if is_on_front else "before"
    return Dot(price, point["quality"], kind, title, label, f"point-{point['id']}")
