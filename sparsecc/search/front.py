"""Which points nothing beats: no other is at once cheaper and better."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]

COSTS: Mapping[str, Callable[[Row], float | None]] = {
    "latency": lambda row: 1 / row["speedup"] if row.get("speedup") else None,
    "macs": lambda row: row.get("macs"),
    "bytes": lambda row: row["bytes"] / row["dense_bytes"],
}
"""What a point costs, as a share of the dense model; None where it was not measured."""


def front(rows: Sequence[Row], cost: str) -> list[str]:
    """The ids of the points that nothing beats, cheapest first. Of equals the earlier id stays."""
    known = [(COSTS[cost](row), row) for row in rows if row.get("quality") is not None]
    priced = [(price, -float(row["quality"]), str(row["id"])) for price, row in known if price is not None]
    chosen, best = [], float("inf")
    for _, loss, name in sorted(priced):
        if loss < best:
            chosen.append(name)
            best = loss
    return chosen


def fronts(rows: Sequence[Row]) -> dict[str, list[str]]:
    """The front by each cost that was measured."""
    found = {cost: front(rows, cost) for cost in COSTS}
    return {cost: names for cost, names in found.items() if names}
