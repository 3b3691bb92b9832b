"""What a plan costs: multiply-accumulates and parameters before and after, in all and layer by layer.

Multiply-accumulates are told per sample: those at the first probe's input sizes, shared by its batch. Layers behind
sizes that nobody can know are left out, and named.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import onnx_ir as ir

from sparsecc.axes.algebra import Keep
from sparsecc.axes.counting import count
from sparsecc.axes.sizes import at, is_unknown
from sparsecc.cost.model import cache_model, params_model
from sparsecc.graph.analysis import Analysis
from sparsecc.rules import Trait, traits_of
from sparsecc.shapes.dynamic_dims import takes_any_batch


def costs(analysis: Analysis, keep: Keep) -> dict[str, dict[str, int]]:
    """Multiply-accumulates and parameters before and after; of decoders also the bytes of cache a position (`kv`)."""
    kept = {atom: int(slots.sum()) for atom, slots in keep.items()}
    params, cache = params_model(analysis), cache_model(analysis)
    return {
        side: {
            "macs": round(macs(analysis, counts)),
            "params": int(params.total(counts)),
            **({"kv": int(cache.total(counts))} if cache.terms else {}),
        }
        for side, counts in (("before", {}), ("after", kept))
    }


def macs(analysis: Analysis, kept: Mapping[Any, int]) -> float:
    """Multiply-accumulates of one sample where atoms keep so many slots."""
    known = (axes for products in analysis.record.macs.values() for axes in products if _is_known(axes))
    return sum(_product(axes, kept) for axes in known) / batch_of(analysis)


def batch_of(analysis: Analysis) -> int:
    """How many samples the first probe has: the size of the first axis of all inputs, where that is free; else 1."""
    sizes = {shape[0] for shape in analysis.shapes.inputs[0].values() if shape}
    return sizes.pop() if len(sizes) == 1 and takes_any_batch(analysis.model) else 1


def counted_at(analysis: Analysis) -> dict[str, Any]:
    """What the figures hold for: {"inputs": {name: shape of one sample}, "batch": of the sizes they were counted at,
    "unknown": layers left out, "once": loops whose bodies count once, as the data says how often they run}."""
    batch = batch_of(analysis)
    shapes = analysis.shapes.inputs[0]
    record = analysis.record
    counted = {node for node, products in record.macs.items() if all(map(_is_known, products))}
    unknown = [
        node.name or ""
        for node in analysis.model.graph.all_nodes()
        if traits_of(node) & Trait.COMPUTES
        and node not in counted
        and not record.constant.issuperset(node.outputs)
    ]
    return {
        "inputs": {name: [1, *shape[1:]] if batch > 1 else list(shape) for name, shape in shapes.items()},
        "batch": batch,
        "unknown": unknown,
        "once": [node.name for node in record.counted_once],
    }


def _is_known(axes: Sequence[Any]) -> bool:
    return not any(is_unknown(axis.size) for axis in axes)


def layers(analysis: Analysis, keep: Keep) -> list[dict[str, Any]]:
    """Per node that computes: output width and multiply-accumulates, before and after."""
    kept = {atom: int(slots.sum()) for atom, slots in keep.items()}
    rows, batch = [], batch_of(analysis)
    for node, products in analysis.record.macs.items():
        known = [axes for axes in products if _is_known(axes)]
        before = sum(_product(axes, {}) for axes in known)
        after = sum(_product(axes, kept) for axes in known)
        axis = _width(analysis, node)
        rows.append(
            {
                "name": node.name,
                "op": node.op_type,
                "before": at(axis.size, 0) if axis is not None else None,
                "after": at(count(axis, kept), 0) if axis is not None else None,
                "macs_before": _shared(before, batch),
                "macs_after": _shared(after, batch),
            }
        )
    return rows


def _shared(total: int, batch: int) -> float:
    """What one of a batch's samples costs."""
    return total / batch if total % batch else total // batch


def _product(axes: Sequence[Any], kept: Mapping[Any, int]) -> int:
    total = 1
    for axis in axes:
        total *= at(count(axis, kept), 0)
    return total


def _width(analysis: Analysis, node: ir.Node) -> Any:
    axes = analysis.record.axes.get(node.outputs[0], [])
    if not axes:
        return None
    return axes[1] if node.op_type.endswith("Conv") or node.op_type == "ConvTranspose" else axes[-1]
