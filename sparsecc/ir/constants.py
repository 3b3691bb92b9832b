"""Constants added to a graph."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir


def add_constant(graph: ir.Graph, stem: str, values: np.ndarray) -> ir.Value:
    """An initializer called `stem`, or `stem2`, `stem3`, … where that name is taken."""
    name, number = stem, 1
    while name in graph.initializers:
        number += 1
        name = f"{stem}{number}"
    tensor = ir.Tensor(values, name=name)
    value = ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value
