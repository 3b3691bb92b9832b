"""What the page of a search shows: one plot per cost, and a table of the points on the front."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sparsecc.report import numbers
from sparsecc.report.charts import ORIGINAL, Dot, Plot, plot

LABELS = {
    "latency": "latency, share of the dense model's",
    "macs": "multiply-accumulates, share of the dense model's",
    "bytes": "size, share of the dense model's",
}
QUALITY = {"accuracy": "accuracy", "quality_db": "quality of outputs, dB"}


@dataclass(frozen=True)
class FrontPage:
    """Everything the template draws."""

    title: str
    cards: Sequence[tuple[str, str]]
    plots: Sequence[Plot]
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    failed: Sequence[tuple[str, str]]
    versions: Sequence[tuple[str, str]]

    @classmethod
    def of(cls, found: Mapping[str, Any]) -> FrontPage:
        """Gather it from front.json."""
        plots = [_plot(found, cost) for cost in found["fronts"]]
        quality = QUALITY[found["quality"]]
        columns = ("plan", "speed-up", "MACs left", "size left", quality, "compile it with")
        shown = list(dict.fromkeys(name for names in found["fronts"].values() for name in names))
        by_id = {point["id"]: point for point in found["points"]}
        rows = [_row(by_id[name]) for name in shown]
        failed = [(plan_text(row["options"]), row["error"]) for row in found["failed"]]
        versions = [(name, str(value)) for name, value in sorted(found["versions"].items())]
        return cls(found["model"]["name"], _cards(found), plots, columns, rows, failed, versions)


def plan_text(options: Mapping[str, Any]) -> str:
    """`ratio 0.5, criterion obs`: what is not automatic."""
    others = [f"{name} {value}" for name, value in options.items() if name != "ratio" and value != "auto"]
    return ", ".join([f"ratio {options['ratio']:g}", *others])


def _cards(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    cards = [("points made", str(len(found["points"]))), ("failed", str(len(found["failed"])))]
    cards += [(f"on the front by {cost}", str(len(names))) for cost, names in found["fronts"].items()]
    if found["dense_quality"] is not None:
        cards.append((f"{QUALITY[found['quality']]} of the dense model", f"{found['dense_quality']:.4g}"))
    return cards


def _row(point: Mapping[str, Any]) -> list[str]:
    before, after = point["before"], point["after"]
    shares = [numbers.percent(after[key] / before[key] if before[key] else None) for key in ("macs", "bytes")]
    speed = f"{point['speedup']:.2f}x" if point.get("speedup") else "–"
    return [plan_text(point["options"]), speed, *shares, f"{point['quality']:.4g}", point["compile"]]


def _plot(found: Mapping[str, Any], cost: str) -> Plot:
    prices, front = found["costs"][cost], found["fronts"][cost]
    points = [p for p in found["points"] if prices[p["id"]] is not None and p["quality"] is not None]
    dots = {
        p["id"]: Dot(
            prices[p["id"]],
            p["quality"],
            "after" if p["id"] in front else "before",
            _title(p, prices[p["id"]]),
            _plain(p["options"]),
        )
        for p in points
    }
    dense = found["dense_quality"]
    others = [] if dense is None else [Dot(1.0, dense, "before", f"{ORIGINAL}: {dense:.4g}", ORIGINAL)]
    drawn = [*dots.values(), *others]
    return plot(LABELS[cost], QUALITY[found["quality"]], drawn, [dots[name] for name in front])


def _plain(options: Mapping[str, Any]) -> str:
    """The label of a point that one lever made: the type, or the ratio."""
    kind, ratio = options.get("quantize"), options["ratio"]
    return str(kind) if kind and not ratio else f"ratio {ratio:g}" if not kind else ""


def _title(point: Mapping[str, Any], price: float) -> str:
    return f"{plan_text(point['options'])}: {point['quality']:.4g} at {price:.3f}"
