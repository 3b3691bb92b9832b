"""Whether a weight really has an N:M pattern, checked on the raw tensor by counting alone.

This shares no code with the passes that make patterns.
"""

from __future__ import annotations

import numpy as np


def invalid_groups(weight: np.ndarray, axis: int, n: int, m: int) -> tuple[int, int]:
    """(groups with more than `n` nonzeros, all groups) among aligned runs of `m` along `axis`.

    For Conv (out, in/group, *kernel) the axis is 1; for Gemm and MatMul the reduction axis. When the size is
    no multiple of `m`, every group counts as invalid.
    """
    size = weight.shape[axis]
    if size % m:
        total = weight.size // max(1, size) * -(-size // m)
        return total, total
    counts = np.add.reduceat((weight != 0).astype(np.int32), np.arange(0, size, m), axis=axis)
    return int((counts > n).sum()), int(counts.size)
