"""How far rounding alone moves the outputs of a model."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from sparsecc.runtime.numerics import Outputs, worst_error
from sparsecc.runtime.partitioned import PartedRunner
from sparsecc.runtime.session import OrtRunner

Runs = OrtRunner | PartedRunner

AMPLIFIED = 16.0
"""How many times what rounding of the inputs does an error may be: every operator rounds as well."""
_DRAWS = 3
"""How often inputs are perturbed to see how strongly the model amplifies rounding."""


def moved_by_rounding(runner: Runs, feeds: Mapping[str, np.ndarray], wanted: Outputs) -> float:
    """The largest relative change of the outputs when the inputs move by about a rounding step."""
    moved = [worst_error(wanted, runner.run(_nudged(feeds, draw))) for draw in range(_DRAWS)]
    return max((m for m in moved if np.isfinite(m)), default=0.0)


def _nudged(feeds: Mapping[str, np.ndarray], draw: int) -> dict[str, np.ndarray]:
    """Floats moved by about one rounding step each."""
    generator = np.random.default_rng(draw)
    moved = {}
    for name, array in feeds.items():
        moved[name] = array
        if array.dtype.kind == "f":
            step = 2 * np.finfo(array.dtype).eps
            moved[name] = (array * (1 + step * generator.uniform(-1, 1, array.shape))).astype(array.dtype)
    return moved
