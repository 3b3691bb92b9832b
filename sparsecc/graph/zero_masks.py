"""Masks that add nothing: exporters keep them where they follow from shapes alone."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from sparsecc.graph.analysis import Analysis
from sparsecc.rules import Trait, traits_of


def idle_masks(analysis: Analysis) -> tuple[str, ...]:
    """The Adds of nothing but computed zeros, each `NODE:OPERAND` where the operand is the zeros."""
    return tuple(place for node in analysis.model.graph for place in _idle(analysis, node))


def _idle(analysis: Analysis, node: ir.Node) -> list[str]:
    """The operand of an Add that is zero everywhere, where the other one has the shape of the sum."""
    if node.op_type != "Add" or node.domain != "":
        return []
    shapes = [analysis.shapes.of(v) for v in (*node.inputs, *node.outputs) if v is not None]
    return [
        f"{node.name}:{operand}"
        for operand, value in enumerate(node.inputs)
        if shapes[1 - operand] is not None and shapes[1 - operand] == shapes[2] and _is_zero(value)
    ][:1]


def _is_zero(value: ir.Value | None) -> bool:
    """A bias of zeros is none: it is no value that was computed."""
    found = uniform(value) if value is not None and value.producer() is not None else None
    return found is not None and bool(found == 0)


def uniform(value: ir.Value | None) -> np.generic | None:
    """The one number that all elements of a value are, whatever the model runs on; None where there is none."""
    while value is not None:
        tensor, node = value.const_value, value.producer()
        if tensor is not None and value.is_initializer():
            return _only(tensor.numpy()) if not value.is_graph_input() else None
        if node is None or node.domain != "":
            return None
        if node.op_type == "Where":
            condition = uniform(node.inputs[0])
            if condition is None:
                return None
            value = node.inputs[1 if condition else 2]
        elif traits_of(node) & Trait.MOVES:
            value = node.inputs[0]
        else:
            return None
    return None


def _only(array: np.ndarray) -> np.generic | None:
    first: np.generic | None = array.reshape(-1)[0] if array.size else None
    return first if first is not None and bool((array == first).all()) else None
