"""The scales of a layer's weight in 8 bits: by its largest numbers, or those that it came with."""

from __future__ import annotations

import numpy as np

from sparsecc.graph.linear_layers import LinearLayer
from sparsecc.passes.quantize.spec import weight_scale

GRID = "sparsecc scale"
"""What a weight that was made of integers says of their steps: an array that broadcasts over it."""

_OFF = 0.01
"""Of a step, how far a number may lie off the grid that it came from."""


def layer_scale(
    layer: LinearLayer, axis: int | None, type_: str = "int8", *, limit: float = 127.0
) -> np.ndarray:
    """Symmetric scales (n,) along `axis`, or () for the whole tensor; see `weight_scale`.

    A channel keeps the scale that it came with where its integers fit, as around a zero point near the middle.
    """
    weight, known = layer.array(), layer.weight.meta.get(GRID)
    if type_ == "fp8":
        return weight_scale(weight, axis, type_)
    if known is None:
        return weight_scale(weight, axis, limit=limit)
    spread = np.broadcast_to(known, weight.shape)
    rows, steps = (_rows(array, axis) for array in (weight, spread))
    levels = rows / steps
    holds = (np.abs(levels - np.rint(levels)) <= _OFF).all(axis=1) & (np.abs(levels) <= limit + _OFF).all(
        axis=1
    )
    holds &= (steps == steps[:, :1]).all(axis=1)
    scale = weight_scale(weight, axis, limit=limit)
    return np.asarray(
        np.where(holds.reshape(scale.shape), steps[:, 0].reshape(scale.shape), scale), np.float32
    )


def _rows(array: np.ndarray, axis: int | None) -> np.ndarray:
    """A row for every scale."""
    if axis is None:
        return array.reshape(1, -1)
    return np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1)
