"""Constants added to a graph, and stored once."""

from __future__ import annotations

import hashlib
from collections import defaultdict

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


def share_equal(model: ir.Model) -> int:
    """Let all who read constants of the main graph that are equal bit by bit read the first; the bytes that are saved.

    Constants that are inputs or outputs too keep their names, and so stay; so do texts.
    """
    alike: dict[tuple[ir.DataType, tuple[int, ...]], list[ir.Value]] = defaultdict(list)
    for value in model.graph.initializers.values():
        tensor, is_seen = value.const_value, value.is_graph_input() or value.is_graph_output()
        if tensor is not None and not is_seen and tensor.dtype != ir.DataType.STRING:
            alike[tensor.dtype, tuple(tensor.shape.numpy())].append(value)
    saved = 0
    for values in (some for some in alike.values() if len(some) > 1):
        known: dict[bytes, ir.Value] = {}
        for value in values:
            assert value.const_value is not None
            first = known.setdefault(hashlib.sha256(value.const_value.tobytes()).digest(), value)
            if first is not value:
                saved += value.const_value.nbytes
                value.replace_all_uses_with(first)
                model.graph.initializers.pop(value.name or "")
    return saved
