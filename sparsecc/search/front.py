"""Which points nothing beats: no other is at once cheaper and better."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]

COSTS: Mapping[str, Callable[[Row], float | None]] = {
    "latency": lambda row: 1 / row["speedup"] if row.get("speedup") else None,
    "macs": lambda row: row.get("macs"),
    "bytes": lambda row: row["bytes"] / row["dense_bytes"],
}
"""What a point costs, as a share of the dense model; None where it was not measured."""
_DENSE = ""


def front(rows: Sequence[Row], cost: str, dense: float = math.inf) -> list[str]:
    """The ids of the points that nothing beats, nor the dense model of that quality, cheapest first. Of equals the
    earlier id stays."""
    known = [(COSTS[cost](row), row) for row in rows if row.get("quality") is not None]
    priced = [(price, -float(row["quality"]), str(row["id"])) for price, row in known if price is not None]
    chosen, best = [], math.inf
    for _, loss, name in sorted([*priced, (1.0, -dense, _DENSE)]):
        if loss < best:
            chosen.append(name)
            best = loss
    return [name for name in chosen if name != _DENSE]


def fronts(rows: Sequence[Row], dense: float = math.inf) -> dict[str, list[str]]:
    """The front by each cost that was measured; empty where the dense model beats every point."""
    judged = [row for row in rows if row.get("quality") is not None]
    costs = [cost for cost, of in COSTS.items() if any(of(row) is not None for row in judged)]
    return {cost: front(rows, cost, dense) for cost in costs}
