"""Random inputs, with what batch norms remember of the training data laid over them.

A batch norm stores the mean and variance that its inputs had in training. Where its stored statistics are
replaced by those of random inputs, what leaves it has the moments that training data would have had, and so have
the inputs of the layer after it. On such a model, layers can be compared and refitted without any sample.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from sparsecc.data.samples import Samples
from sparsecc.runtime.segments import Walk

Kept = Callable[[str, int], np.ndarray | None]


@dataclass(frozen=True)
class Norm:
    """What a batch norm stores, (channels,) each."""

    mean: np.ndarray
    variance: np.ndarray


def norms_of(model: ir.Model) -> list[ir.Node]:
    """The batch norms whose statistics are constants of their own, one number per channel."""
    norms = [
        n
        for n in model.graph
        if n.op_type == "BatchNormalization" and n.attributes.get_int("spatial", 1) != 0
    ]
    return [n for n in norms if all(map(_is_own, n.inputs[3:5]))]


@contextmanager
def matched(model: ir.Model, samples: Samples, scratch: Path, *, threads: int, memory: int) -> Iterator[None]:
    """Inside, the batch norms of `model` hold the statistics of these samples, one after the other."""
    stored = {node: norm_of(node) for node in norms_of(model)}
    walk = Walk(model, samples.batches, scratch, threads=threads, memory=memory)
    try:
        for number, node in enumerate(walk.nodes):
            if node in stored:
                walk.advance(number)
                set_norm(node, _seen(walk, node))
        yield
    finally:
        for node, norm in stored.items():
            set_norm(node, norm)


@contextmanager
def matched_pair(dense: ir.Model, pruned: ir.Model, kept: Kept) -> Iterator[None]:
    """Inside, the batch norms of `pruned` hold what those of `dense` hold; what they become there is carried
    over, as a shift and a ratio, to what they held before."""
    own = {node.name: node for node in norms_of(pruned)}
    pairs = [(node, own[node.name]) for node in norms_of(dense) if node.name in own]
    before = {twin: norm_of(twin) for _, twin in pairs}
    inside = {twin: _left(norm_of(node), node, kept) for node, twin in pairs}
    for twin, norm in inside.items():
        set_norm(twin, norm)
    yield
    for twin, norm in inside.items():
        now, then = norm_of(twin), before[twin]
        variance = then.variance * (now.variance / np.maximum(norm.variance, 1e-12))
        set_norm(twin, Norm(then.mean + (now.mean - norm.mean), variance))


def norm_of(node: ir.Node) -> Norm:
    """The statistics that a batch norm stores."""
    mean, variance = (v.const_value for v in node.inputs[3:5] if v is not None)
    assert mean is not None
    assert variance is not None
    return Norm(mean.numpy().astype(np.float64), variance.numpy().astype(np.float64))


def set_norm(node: ir.Node, norm: Norm) -> None:
    """Replace the statistics that a batch norm stores."""
    for value, array in zip(node.inputs[3:5], (norm.mean, norm.variance), strict=True):
        assert value is not None
        assert value.const_value is not None
        value.const_value = ir.Tensor(array.astype(value.const_value.dtype.numpy()), name=value.name)


def _seen(walk: Walk, node: ir.Node) -> Norm:
    """Mean and variance per channel of a batch norm's input."""
    data = node.inputs[0]
    assert data is not None
    count, total, squares = 0, 0.0, 0.0
    for batch in range(walk.batches):
        array = walk.value(data.name or "", batch).astype(np.float64)
        others = tuple(i for i in range(array.ndim) if i != 1)
        count += array.size // array.shape[1]
        total = total + array.sum(axis=others)
        squares = squares + np.square(array).sum(axis=others)
    mean = np.asarray(total / count)
    return Norm(mean, np.maximum(squares / count - np.square(mean), 1e-12))


def _left(norm: Norm, node: ir.Node, kept: Kept) -> Norm:
    data = node.inputs[0]
    mask = kept(data.name or "", 1) if data is not None else None
    return norm if mask is None else Norm(norm.mean[mask], norm.variance[mask])


def _is_own(value: ir.Value | None) -> bool:
    return value is not None and value.is_initializer() and len(value.uses()) == 1
