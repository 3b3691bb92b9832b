"""How much each weight matters: magnitude, or magnitude times the size of its input (Wanda)."""

from __future__ import annotations

import numpy as np


def magnitude_order(weight: np.ndarray) -> np.ndarray:
    """Whole numbers in the order of |w|: the bits without the sign, much faster to compare than half floats."""
    bits = np.dtype(f"u{weight.dtype.itemsize}")
    return np.asarray(weight.view(bits) & bits.type(np.iinfo(bits).max >> 1))


def wanda_scores(matrix: np.ndarray, input_size: np.ndarray) -> np.ndarray:
    """(out, k): |W| times the root mean square (k,) of its input (Sun et al., 2023)."""
    return np.asarray(np.abs(matrix) * input_size)
