"""A modest layered layout: ranks by longest path, order within a rank by the mean of its neighbours."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

SWEEPS = 6
NODE_WIDTH, NODE_HEIGHT = 132, 30
GAP_ACROSS, GAP_DOWN = 18, 26
SWING = 0.8 * NODE_WIDTH
"""How far aside the control points of a long edge lie; the curve itself reaches three quarters of it."""

Edge = tuple[int, int]


@dataclass(frozen=True)
class Layout:
    """The top left corner of every node, an SVG path for every edge, and the size of the drawing."""

    corners: tuple[tuple[float, float], ...]
    paths: tuple[str, ...]
    width: float
    height: float


def layered(number: int, edges: Sequence[Edge]) -> Layout:
    """Lay out `number` nodes in topological order. Edges that go back are drawn but give no rank."""
    forward = [edge for edge in edges if edge[0] < edge[1]]
    ranks = _ranks(number, forward)
    rows = _rows(number, ranks, forward)
    step = NODE_WIDTH + GAP_ACROSS
    widest = max((len(row) for row in rows), default=1)
    corners = [(0.0, 0.0)] * number
    for rank, row in enumerate(rows):
        left = (widest - len(row)) * step / 2
        for place, node in enumerate(row):
            corners[node] = (left + place * step, rank * (NODE_HEIGHT + GAP_DOWN))
    paths = tuple(_path(corners[source], corners[sink]) for source, sink in edges)
    height = len(rows) * (NODE_HEIGHT + GAP_DOWN) - GAP_DOWN
    return Layout(tuple(corners), paths, widest * step - GAP_ACROSS, max(height, NODE_HEIGHT))


def _ranks(number: int, edges: Sequence[Edge]) -> list[int]:
    """One below the lowest producer; sources that feed late nodes are pulled down next to them."""
    ranks = [0] * number
    sinks: dict[int, list[int]] = defaultdict(list)
    has_producer = [False] * number
    for source, sink in sorted(edges, key=lambda edge: edge[1]):
        ranks[sink] = max(ranks[sink], ranks[source] + 1)
        sinks[source].append(sink)
        has_producer[sink] = True
    for node in range(number):
        if not has_producer[node] and sinks[node]:
            ranks[node] = max(0, min(ranks[sink] for sink in sinks[node]) - 1)
    return ranks


def _rows(number: int, ranks: Sequence[int], edges: Sequence[Edge]) -> list[list[int]]:
    """The nodes of each rank, ordered so that edges cross less."""
    rows: list[list[int]] = [[] for _ in range(max(ranks, default=0) + 1)]
    for node in range(number):
        rows[ranks[node]].append(node)
    above: dict[int, list[int]] = defaultdict(list)
    below: dict[int, list[int]] = defaultdict(list)
    for source, sink in edges:
        above[sink].append(source)
        below[source].append(sink)
    places = {node: _centred(place, row) for row in rows for place, node in enumerate(row)}
    for sweep in range(SWEEPS):
        neighbours, order = (above, rows) if sweep % 2 == 0 else (below, rows[::-1])
        for row in order:
            row.sort(key=lambda node: _mean([places[other] for other in neighbours[node]], places[node]))
            places.update({node: _centred(place, row) for place, node in enumerate(row)})
    return rows


def _centred(place: int, row: Sequence[int]) -> float:
    return place - (len(row) - 1) / 2


def _mean(numbers: Sequence[float], otherwise: float) -> float:
    return sum(numbers) / len(numbers) if numbers else otherwise


def _path(source: tuple[float, float], sink: tuple[float, float]) -> str:
    """A curve from the bottom of one node to the top of the other; a long one swings out to the right."""
    x1, y1 = source[0] + NODE_WIDTH / 2, source[1] + NODE_HEIGHT
    x2, y2 = sink[0] + NODE_WIDTH / 2, sink[1]
    is_long = y2 - y1 > GAP_DOWN + NODE_HEIGHT and abs(x1 - x2) < 1
    swing = SWING + min((y2 - y1) / 12, 40) if is_long else 0
    bend = max((y2 - y1) / 2, GAP_DOWN / 2)
    return f"M{x1:g},{y1:g} C{x1 + swing:g},{y1 + bend:g} {x2 + swing:g},{y2 - bend:g} {x2:g},{y2:g}"
