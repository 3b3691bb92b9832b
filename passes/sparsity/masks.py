"""How much each weight matters: magnitude, or magnitude times the size of its input (Wanda)."""

from __future__ import annotations

import numpy as np


def magnitude_scores(matrix: np.ndarray) -> np.ndarray:
    """(out, k): |W|."""
    return np.asarray(np.abs(matrix))


def wanda_scores(matrix: np.ndarray, input_size: np.ndarray) -> np.ndarray:
    """(out, k): |W| times the root mean square (k,) of its input (Sun et al., 2023)."""
    return np.asarray(np.abs(matrix) * input_size)
