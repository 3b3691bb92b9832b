"""One option per layer by dynamic programming: least cost while the losses add up to a budget at most."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

UNITS = 2000


def additive_allocate(
    cost: Sequence[Sequence[float]], loss: Sequence[Sequence[float]], budget: float
) -> list[int] | None:
    """The option of every item with the least total cost and total loss <= budget; None when there is none.

    Losses are rounded up to 1/2000 of the budget, so the budget itself is never overrun.
    """
    if budget <= 0:
        units = [[0 if value <= 0 else UNITS + 1 for value in options] for options in loss]
    else:
        units = [[int(np.ceil(max(0.0, v) / budget * UNITS - 1e-9)) for v in options] for options in loss]
    best = np.zeros(UNITS + 1)
    trace = np.zeros((len(cost), UNITS + 1), np.int16)
    for item, (prices, steps) in enumerate(zip(cost, units, strict=True)):
        following = np.full(UNITS + 1, np.inf)
        for option, (price, step) in enumerate(zip(prices, steps, strict=True)):
            if step > UNITS:
                continue
            reached = np.full(UNITS + 1, np.inf)
            reached[step:] = best[: UNITS + 1 - step] + price
            better = reached < following
            following[better] = reached[better]
            trace[item][better] = option
        best = following
    if not np.isfinite(best[UNITS]):
        return None
    chosen, left = [0] * len(cost), UNITS
    for item in range(len(cost) - 1, -1, -1):
        chosen[item] = int(trace[item][left])
        left -= units[item][chosen[item]]
    return chosen
