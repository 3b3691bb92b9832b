"""The nodes of a model and what feeds what: all that drawing a graph needs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sparsecc.bodies import reads

if TYPE_CHECKING:
    import onnx_ir as ir


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
