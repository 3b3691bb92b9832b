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
    """Symmetric scales (n,) along `axis`, or () for the whole tensor; see `weight_scale`."""
    weight, known = layer.array(), layer.weight.meta.get(GRID)
    if type_ == "fp8":
        return weight_scale(weight, axis, type_)
    if known is None:
        return weight_scale(weight, axis, limit=limit)
    spread = np.broadcast_to(known, weight.shape)
    rows = (
        spread.reshape(1, -1)
        if axis is None
        else np.moveaxis(spread, axis, 0).reshape(weight.shape[axis], -1)
    )
    levels = weight / spread
    holds = bool((np.abs(levels - np.rint(levels)) <= _OFF).all() and (np.abs(levels) <= limit + _OFF).all())
    if not holds or not (rows == rows[:, :1]).all():
        return weight_scale(weight, axis, limit=limit)
    return np.array(rows[0, 0] if axis is None else rows[:, 0], np.float32)
