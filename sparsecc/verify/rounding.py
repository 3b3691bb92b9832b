"""Whether two bundles differ by no more than processors of two types round differently."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from sparsecc.loading.models import load_ir

LARGEST = 1e-3
"""Of a weight tensor's largest value. Sums differ by some 1e-7; refitted weights by that times the condition
of what is solved."""
DERIVED = (".ort", ".config", ".data")
"""Made of model.onnx, or read with it."""


def difference(before: Path, again: Path, names: Iterable[str]) -> float | None:
    """The largest difference between the files `names` of two bundles, relative to the largest value of a tensor.

    None where they differ in more than rounding: in a node, a name, a shape, a whole number, or a file that can only
    be compared by its bytes. Whole numbers of quantized weights may be one step apart.
    """
    largest = 0.0
    for name in names:
        if not ((before / name).is_file() and (again / name).is_file()):
            return None
        if name == "model.onnx":
            found = _of_models(before / name, again / name)
        elif name.endswith(".json"):
            found = _of_data(_read(before / name), _read(again / name))
        elif name.endswith(DERIVED) and (before / "model.onnx").is_file():
            found = _of_models(before / "model.onnx", again / "model.onnx")
        else:
            return None
        if found > LARGEST:
            return None
        largest = max(largest, found)
    return largest


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _of_data(a: Any, b: Any) -> float:
    """The largest relative difference of numbers with a point; infinite where anything else differs."""
    if isinstance(a, float) and isinstance(b, float):
        return 0.0 if a == b else abs(a - b) / max(abs(a), abs(b))
    if isinstance(a, dict) and isinstance(b, dict):
        return max((_of_data(a[k], b[k]) for k in a), default=0.0) if a.keys() == b.keys() else math.inf
    if isinstance(a, list) and isinstance(b, list):
        return max(map(_of_data, a, b), default=0.0) if len(a) == len(b) else math.inf
    return 0.0 if type(a) is type(b) and a == b else math.inf


def _of_models(first: Path, second: Path) -> float:
    """The largest relative difference of constants; infinite where a node or a name differs."""
    a, b = load_ir(first), load_ir(second)
    if [_signature(node) for node in _nodes(a)] != [_signature(node) for node in _nodes(b)]:
        return math.inf
    weights = [dict(_weights(model)) for model in (a, b)]
    if weights[0].keys() != weights[1].keys():
        return math.inf
    return max((_of_tensors(weights[0][name], weights[1][name]) for name in weights[0]), default=0.0)


def _nodes(model: ir.Model) -> Iterator[ir.Node]:
    yield from (node for graph in model.graphs() for node in graph)


def _signature(node: ir.Node) -> tuple[Any, ...]:
    """What a node is, without its numbers with a point."""
    values = [[v.name if v is not None else None for v in side] for side in (node.inputs, node.outputs)]
    plain = sorted(
        (name, repr(attribute.value))
        for name, attribute in node.attributes.items()
        if attribute.type
        not in (
            ir.AttributeType.GRAPH,
            ir.AttributeType.GRAPHS,
            ir.AttributeType.TENSOR,
            ir.AttributeType.FLOAT,
        )
    )
    return (node.domain, node.op_type, *map(tuple, values), tuple(plain))


def _weights(model: ir.Model) -> Iterator[tuple[tuple[int, str], np.ndarray]]:
    """Every constant by graph and name; numbers in attributes count too."""
    for number, graph in enumerate(model.graphs()):
        for name, value in graph.initializers.items():
            if value.const_value is not None:
                yield (number, name), value.const_value.numpy()
        for place, node in enumerate(graph):
            for name, attribute in node.attributes.items():
                if attribute.type == ir.AttributeType.FLOAT:
                    yield (number, f"{place}.{name}"), np.float64(attribute.as_float()).reshape(1)
                elif attribute.type == ir.AttributeType.TENSOR:
                    yield (number, f"{place}.{name}"), attribute.as_tensor().numpy()


def _of_tensors(a: np.ndarray, b: np.ndarray) -> float:
    if a.dtype != b.dtype or a.shape != b.shape:
        return math.inf
    if a.dtype.kind in "iu" and a.dtype.itemsize == 1:
        return (
            0.0 if not a.size or int(np.abs(a.astype(np.int32) - b.astype(np.int32)).max()) <= 1 else math.inf
        )
    if a.dtype.kind in "iubOSU" or not a.size:
        return 0.0 if np.array_equal(a, b) else math.inf
    wide_a, wide_b = a.astype(np.float64), b.astype(np.float64)
    scale = float(np.abs(wide_a).max())
    apart = float(np.abs(wide_a - wide_b).max())
    return 0.0 if apart == 0 else apart / scale if scale else math.inf
