"""The geometry of the charts: plain numbers that the templates draw as SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

WIDTH = 640
"""Width of a chart in SVG units."""
CURVE_HEIGHT = 84
PLOT_HEIGHT = 300
STEPS_ACROSS = 160
TICKS = 6
ORIGINAL = "the original"
"""The label of the dense model."""
EDGE = 14
"""SVG units from the edge within which a label would be cut."""
LABEL = (150, 16)
"""Width and height that a label of a dot takes at most."""


@dataclass(frozen=True)
class Curve:
    """A smoothed distribution: an SVG area in a box of WIDTH x CURVE_HEIGHT, and the place of its median."""

    label: str
    kind: str
    path: str
    median_x: float
    label_x: float
    anchor: str
    median: float
    number: int


@dataclass(frozen=True)
class Tick:
    """A labelled place on the horizontal axis."""

    x: float
    label: str

    @property
    def anchor(self) -> str:
        """How its label stands, so that the chart's edge does not cut it."""
        return "start" if self.x < EDGE else "end" if self.x > WIDTH - EDGE else "middle"


@dataclass(frozen=True)
class Distributions:
    """Distributions over one common axis."""

    curves: tuple[Curve, ...]
    ticks: tuple[Tick, ...]


@dataclass(frozen=True)
class Dot:
    """One point; `kind` is `after` on the front and `before` elsewhere. `label` stands beside it, `title` is shown
    when it is pointed at, `link` names the row of the page that it leads to."""

    x: float
    y: float
    kind: str
    title: str
    label: str = ""
    link: str = ""


def original(x: float, quality: float | None, others: Sequence[float]) -> Dot:
    """The dense model at its score; without one, at infinite decibels of itself, above the others."""
    if quality is not None:
        return Dot(x, quality, "before", f"{ORIGINAL}: {quality:.4g}", ORIGINAL)
    low, high = min(others, default=0.0), max(others, default=0.0)
    above = high + (0.1 * (high - low) or 1.0)
    return Dot(x, above, "before", f"{ORIGINAL}: nothing lost (no number of decibels)", ORIGINAL)


@dataclass(frozen=True)
class Plot:
    """One quantity over another, in a box of WIDTH x PLOT_HEIGHT; `path` joins the front."""

    across_label: str
    up_label: str
    dots: Sequence[Dot]
    path: str
    across: Sequence[Tick]
    up: Sequence[Tick]
    height: int = PLOT_HEIGHT


def plot(across_label: str, up_label: str, points: Sequence[Dot], front: Sequence[Dot]) -> Plot:
    """Draw points given in their own units; `front` are those that the line joins, in its order."""
    across, up = _span([dot.x for dot in points]), _span([dot.y for dot in points])

    def placed(dot: Dot) -> Dot:
        return replace(
            dot,
            x=round(_x(dot.x, *across), 1),
            y=round(PLOT_HEIGHT * (1 - (dot.y - up[0]) / (up[1] - up[0])), 1),
        )

    return Plot(
        across_label,
        up_label,
        _apart([placed(dot) for dot in points]),
        " ".join(f"{dot.x:.1f},{dot.y:.1f}" for dot in map(placed, front)),
        [Tick(round(_x(value, *across), 1), f"{value:g}") for value in round_values(*across)],
        [Tick(placed(Dot(0.0, value, "", "")).y, f"{value:g}") for value in round_values(*up)],
    )


def _apart(dots: Sequence[Dot]) -> list[Dot]:
    """Without the labels that would stand on others: the front's first, then the original's. All have their titles."""
    kept: list[Dot] = []
    for dot in sorted(dots, key=lambda dot: (dot.kind != "after", dot.label != ORIGINAL)):
        near = (one for one in kept if one.label and dot.label)
        crowded = any(abs(one.x - dot.x) < LABEL[0] and abs(one.y - dot.y) < LABEL[1] for one in near)
        kept.append(replace(dot, label="") if crowded else dot)
    return kept


def _span(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    margin = 0.06 * (high - low) or 0.05 * (abs(high) or 1.0)
    return low - margin, high + margin


def distributions(series: Sequence[tuple[str, str, Sequence[float]]]) -> Distributions | None:
    """Draw (label, kind, samples) above one another; None when no series has two samples or more.

    The axis ends at the 99th percentile of the widest series: one preempted run must not squeeze the rest.
    """
    series = [(label, kind, sorted(samples)) for label, kind, samples in series if len(samples) >= 2]
    if not series:
        return None
    low = min(samples[0] for _, _, samples in series)
    high = max(quantile(samples, 0.99) for _, _, samples in series)
    margin = 0.06 * (high - low) or 0.05 * (abs(high) or 1.0)
    low, high = max(0.0, low - margin), high + margin
    curves = tuple(_curve(label, kind, samples, low, high) for label, kind, samples in series)
    ticks = tuple(Tick(round(_x(value, low, high), 2), f"{value:g}") for value in round_values(low, high))
    return Distributions(curves, ticks)


def quantile(ordered: Sequence[float], share: float) -> float:
    """A quantile of ascending samples, by linear interpolation."""
    place = share * (len(ordered) - 1)
    left = math.floor(place)
    right = min(left + 1, len(ordered) - 1)
    return ordered[left] + (place - left) * (ordered[right] - ordered[left])


def round_values(low: float, high: float) -> list[float]:
    """About TICKS round numbers (1, 2 or 5 times a power of ten apart) from `low` to `high`."""
    rough = (high - low) / TICKS
    power = 10 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first = math.ceil(low / step)
    return [float(f"{n * step:.10g}") for n in range(first, math.floor(high / step) + 1)]


def _x(value: float, low: float, high: float) -> float:
    return WIDTH * (value - low) / (high - low)


def _curve(label: str, kind: str, ordered: Sequence[float], low: float, high: float) -> Curve:
    """A Gaussian kernel density, its width by Silverman's rule on the interquartile range."""
    spread = (quantile(ordered, 0.75) - quantile(ordered, 0.25)) / 1.349
    width = max(0.9 * spread * len(ordered) ** -0.2, (high - low) / 200)
    places = [low + (high - low) * step / STEPS_ACROSS for step in range(STEPS_ACROSS + 1)]
    heights = [sum(math.exp(-0.5 * ((place - one) / width) ** 2) for one in ordered) for place in places]
    tallest = max(heights)
    points = [
        f"{_x(place, low, high):.1f},{CURVE_HEIGHT * (1 - 0.92 * height / tallest):.1f}"
        for place, height in zip(places, heights, strict=True)
    ]
    path = f"M0,{CURVE_HEIGHT} L" + " L".join(points) + f" L{WIDTH},{CURVE_HEIGHT} Z"
    median = quantile(ordered, 0.5)
    x = round(_x(median, low, high), 2)
    label_x, anchor = (
        (0.0, "start") if x < WIDTH / 5 else (x, "middle") if x < 4 * WIDTH / 5 else (WIDTH, "end")
    )
    return Curve(label, kind, path, x, label_x, anchor, median, len(ordered))
