"""What the page of a profile shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sparsecc.report import numbers
from sparsecc.report.charts import Distributions, distributions
from sparsecc.report.summary import profile_rows


@dataclass(frozen=True)
class LayerBar:
    """One layer: where its time starts and how long it is, in per cent of the whole."""

    name: str
    op: str
    type: str
    time: str
    share: float
    start: float


@dataclass(frozen=True)
class ProfilePage:
    """Everything the template draws."""

    title: str
    rows: Sequence[tuple[str, str]]
    latency: Distributions | None
    layers: Sequence[LayerBar]
    facts: Sequence[tuple[str, str]]

    @classmethod
    def of(cls, measured: Mapping[str, Any]) -> ProfilePage:
        """Gather it."""
        samples = measured.get("samples_ms") or {}
        clock, label = ("gpu", "GPU time") if "gpu" in samples else ("cpu", "CPU time")
        curves = distributions([(label, "after", samples.get(clock) or ())])
        title = str(measured.get("model", "model"))
        return cls(title, profile_rows(measured), curves, _bars(measured), _facts(measured))


def _bars(measured: Mapping[str, Any]) -> list[LayerBar]:
    layers = measured.get("layers") or ()
    total = sum(layer["microseconds"] for layer in layers) or 1.0
    bars = []
    start = 0.0
    for layer in layers:
        share = 100 * layer["microseconds"] / total
        time = numbers.milliseconds(layer["microseconds"] / 1e3)
        name = layer["name"] or "(no name)"
        bars.append(
            LayerBar(name, layer["op_type"], layer.get("type", ""), time, round(share, 2), round(start, 2))
        )
        start += share
    return bars


def _facts(measured: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = []
    for part in ("target", "device", "versions"):
        value = measured.get(part) or {}
        pairs = value.items() if isinstance(value, Mapping) else [("name", value)]
        rows += [(f"{part}: {key}", str(one)) for key, one in pairs if isinstance(one, str | int | float)]
    return rows
