"""Whether a weight really has an N:M pattern, checked on the raw tensor by counting alone.

This shares no code with the passes that make patterns.
"""

from __future__ import annotations

import numpy as np

_BLOCK = 1 << 22
"""Elements looked at in one go."""


def invalid_groups(weight: np.ndarray, axis: int, n: int, m: int) -> tuple[int, int]:
    """(groups with more than `n` nonzeros, all groups) among aligned runs of `m` along `axis`.

    For Conv (out, in/group, *kernel) the axis is 1; for Gemm and MatMul the reduction axis. When the size is
    no multiple of `m`, every group counts as invalid.
    """
    size = weight.shape[axis]
    if size % m:
        total = weight.size // max(1, size) * -(-size // m)
        return total, total
    lines, step = np.moveaxis(weight, axis, 0), m * max(1, _BLOCK * size // (m * weight.size or 1))
    invalid = 0
    for start in range(0, size, step):
        groups = (lines[start : start + step] != 0).reshape(-1, m, *lines.shape[1:])
        invalid += int((groups.sum(axis=1, dtype=np.uint8) > n).sum())
    return invalid, weight.size // m
