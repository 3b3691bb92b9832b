"""What a plan costs: multiply-accumulates and parameters before and after, in all and layer by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from sparsecc.axes.algebra import Keep, count
from sparsecc.axes.sizes import at
from sparsecc.cost.model import macs_model, params_model
from sparsecc.graph.analysis import Analysis

if TYPE_CHECKING:
    pass


def costs(analysis: Analysis, keep: Keep) -> dict[str, dict[str, int]]:
    """Multiply-accumulates and parameters before and after."""
    kept = {atom: int(slots.sum()) for atom, slots in keep.items()}
    models = {"macs": macs_model(analysis), "params": params_model(analysis)}
    return {
        "before": {name: int(model.total({})) for name, model in models.items()},
        "after": {name: int(model.total(kept)) for name, model in models.items()},
    }


def layers(analysis: Analysis, keep: Keep) -> list[dict[str, Any]]:
    """Per node that computes: output width and multiply-accumulates, before and after."""
    kept = {atom: int(slots.sum()) for atom, slots in keep.items()}
    rows = []
    for node, products in analysis.record.macs.items():
        before = sum(_product(axes, {}) for axes in products)
        after = sum(_product(axes, kept) for axes in products)
        axis = _width(analysis, node)
        rows.append(
            {
                "name": node.name,
                "op": node.op_type,
                "before": at(axis.size, 0) if axis is not None else None,
                "after": at(count(axis, kept), 0) if axis is not None else None,
                "macs_before": before,
                "macs_after": after,
            }
        )
    return rows


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
