"""Batch norms whose inputs moved: their stored mean and variance move with them.

The re-estimation of "Structurally Prune Anything" (Wang et al., 2024), as a shift: a model whose statistics
come from other data than the calibration samples keeps them where nothing changed.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx_ir as ir

from sparsecc.reconstruct.solve import fading

_SMALLEST = 1e-3


def shift_statistics(node: ir.Node, pairs: Iterable[tuple[np.ndarray, np.ndarray]]) -> list[str]:
    """Move mean and variance by what (dense, pruned) inputs show. Returns the initializers that changed."""
    mean, variance = node.inputs[3], node.inputs[4]
    own = [v is not None and v.is_initializer() and len(v.uses()) == 1 for v in (mean, variance)]
    if not all(own) or mean is None or variance is None:
        return []
    moments = _moments(pairs)
    if moments is None:
        return []
    means, variances = moments
    floor = _SMALLEST * max(float(np.abs(variances[0]).max()), 1e-12)
    ratio = np.maximum(variances[1], floor) / np.maximum(variances[0], floor)
    _write(mean, _read(mean) + means[1] - means[0])
    _write(variance, _read(variance) * ratio)
    return [mean.name or "", variance.name or ""]


def shift_offset(node: ir.Node, pairs: Iterable[tuple[np.ndarray, np.ndarray]]) -> list[str]:
    """Move the offset so that outputs keep their ratio of mean to deviation (see `solve.faded_bias_for`).

    Returns the initializers that changed.
    """
    scale, offset, mean, variance = node.inputs[1:5]
    values = (scale, offset, mean, variance)
    if offset is None or any(v is None or v.const_value is None for v in values) or len(offset.uses()) > 1:
        return []
    moments = _moments(pairs)
    if moments is None:
        return []
    means, variances = moments
    gain, at, centre, spread = (_read(v) for v in values if v is not None)
    gain = gain / np.sqrt(spread + node.attributes.get_float("epsilon", 1e-5))
    dense, pruned = ((m - centre) * gain for m in means)
    _write(offset, fading(variances[1], variances[0]) * (dense + at) - pruned)
    return [offset.name or ""]


def _moments(
    pairs: Iterable[tuple[np.ndarray, np.ndarray]],
) -> tuple[list[np.ndarray], list[np.ndarray]] | None:
    """Means and variances of (dense, pruned) inputs; None where they are the same, or no numbers."""
    sums = [_sums(dense) + _sums(pruned) for dense, pruned in pairs]
    total = np.sum([np.stack(s) for s in sums], axis=0)  # (count, sum, squares) of dense, then of pruned
    means = [total[1] / total[0], total[4] / total[3]]
    variances = [total[i + 2] / total[i] - np.square(m) for i, m in zip((0, 3), means, strict=True)]
    if not np.isfinite(total).all() or (np.allclose(*means) and np.allclose(*variances)):
        return None
    return means, variances


def _sums(array: np.ndarray) -> list[np.ndarray]:
    """Count, sum and sum of squares per channel (axis 1)."""
    others = tuple(i for i in range(array.ndim) if i != 1)
    wide = array.astype(np.float64)
    count = np.full(array.shape[1], array.size / array.shape[1])
    return [count, wide.sum(axis=others), np.square(wide).sum(axis=others)]


def _read(value: ir.Value) -> np.ndarray:
    assert value.const_value is not None
    return np.asarray(value.const_value.numpy().astype(np.float64))


def _write(value: ir.Value, array: np.ndarray) -> None:
    assert value.const_value is not None
    value.const_value = ir.Tensor(array.astype(value.const_value.dtype.numpy()), name=value.name)
