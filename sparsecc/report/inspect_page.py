"""What the page of an inspection shows: totals, groups, pins, and the graph where it can be drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sparsecc.ir.subgraphs import reads
from sparsecc.report.layout import NODE_HEIGHT, NODE_WIDTH, layered
from sparsecc.report.summary import Reason

if TYPE_CHECKING:
    import onnx_ir as ir

LARGEST_GRAPH = 2000
"""Nodes that are drawn; a larger graph is shown as a table."""

HUES = 137.508
"""The golden angle: neighbouring groups get hues far apart."""
LABEL = 20
"""Characters of a node's name that fit into its box."""


@dataclass(frozen=True)
class DrawnNode:
    """A box of the graph: the ids of its groups, and a band (left edge, hue) for each that can be cut."""

    x: float
    y: float
    op: str
    name: str
    label: str
    groups: str
    bands: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Drawing:
    """The graph: boxes, edges, size."""

    nodes: Sequence[DrawnNode]
    paths: Sequence[str]
    width: float
    height: float
    node_width: int = NODE_WIDTH
    node_height: int = NODE_HEIGHT


@dataclass(frozen=True)
class GroupRow:
    """A group as a row of the table."""

    id: int
    kind: str
    size: int
    macs: float | None
    params: float | None
    hue: float
    pinned: str
    mixes: bool
    members: Sequence[str]


@dataclass(frozen=True)
class InspectPage:
    """Everything the template draws."""

    title: str
    model: Mapping[str, Any]
    prunable: Mapping[str, Any]
    drawing: Drawing | None
    not_drawn: str
    free: Sequence[GroupRow]
    pinned: Sequence[GroupRow]
    pins: Sequence[Reason]
    unknown: Sequence[Reason]

    @classmethod
    def of(cls, found: Mapping[str, Any]) -> InspectPage:
        """Gather it."""
        rows = [_row(group) for group in found["groups"]]
        graph = found.get("graph") or {}
        number = len(graph.get("nodes") or ())
        large = (
            f"The graph has {number} nodes; up to {LARGEST_GRAPH} are drawn."
            if number > LARGEST_GRAPH
            else ""
        )
        return cls(
            title=str(found["model"]["path"]),
            model=found["model"],
            prunable=found["prunable"],
            drawing=_draw(graph, found["groups"]) if 0 < number <= LARGEST_GRAPH else None,
            not_drawn=large,
            free=sorted((row for row in rows if not row.pinned), key=lambda row: (-(row.macs or 0), row.id)),
            pinned=[row for row in rows if row.pinned],
            pins=[Reason(pin["reason"], pin["groups"], "") for pin in found["pins"]],
            unknown=[Reason(op["reason"], _number(op["nodes"]), op["op"]) for op in found["unknown_ops"]],
        )


def hue(group: int) -> float:
    """The hue of a group's colour, in degrees."""
    return round(group * HUES % 360, 1)


def _number(nodes: Any) -> int:
    return nodes if isinstance(nodes, int) else len(nodes)


def _row(group: Mapping[str, Any]) -> GroupRow:
    return GroupRow(
        id=group["id"],
        kind=group["kind"],
        size=group["size"],
        macs=group.get("macs"),
        params=group.get("params"),
        hue=hue(group["id"]),
        pinned="" if group["prunable"] else str(group.get("pinned") or "not prunable"),
        mixes=bool(group.get("mixes")),
        members=[f"{tensor}:{axis}" for tensor, axis in group["members"]],
    )


def _draw(graph: Mapping[str, Any], groups: Sequence[Mapping[str, Any]]) -> Drawing:
    nodes = graph["nodes"]
    laid = layered(len(nodes), [(source, sink) for source, sink in graph["edges"]])
    belongs: dict[str, list[int]] = {}
    for group in sorted(groups, key=lambda group: not group["prunable"]):
        for name in group["nodes"]:
            belongs.setdefault(str(name), []).append(group["id"])
    free = {group["id"] for group in groups if group["prunable"]}
    drawn = [
        _node(node, corner, belongs.get(str(node["name"]), []), free)
        for node, corner in zip(nodes, laid.corners, strict=True)
    ]
    return Drawing(drawn, laid.paths, laid.width, laid.height)


def _node(
    node: Mapping[str, Any], corner: tuple[float, float], groups: Sequence[int], free: set[int]
) -> DrawnNode:
    name = str(node["name"])
    label = name if len(name) <= LABEL else "…" + name[1 - LABEL :]
    hues = [hue(group) for group in groups if group in free]
    bands = [(NODE_WIDTH * place / len(hues), one) for place, one in enumerate(hues)]
    return DrawnNode(*corner, str(node["op"]), name, label, " ".join(str(group) for group in groups), bands)


def topology(model: ir.Model) -> dict[str, Any]:
    """{"nodes": [{"name", "op"}, ...], "edges": [[from, to], ...]}, in the model's order, for `inspect_page`.

    An edge joins the places of two nodes in `nodes`; several values between the same two are one edge.
    Constants are not drawn, nor are the insides of bodies.
    """
    places = {node: place for place, node in enumerate(model.graph)}
    edges = {
        (places[producer], place)
        for node, place in places.items()
        for value in reads(node)
        if (producer := value.producer()) in places
    }
    nodes = [{"name": node.name or f"#{place}", "op": node.op_type} for node, place in places.items()]
    return {"nodes": nodes, "edges": [list(edge) for edge in sorted(edges)]}
