"""Types under a speed: the layers that lose most stay finer for as long as time is left.

Times of layers do not add up from float, where a lone integer layer pays for conversions that a chain of them does
not need, and single layers are too short to be timed on a busy machine. So their times are estimated by their work,
and whole choices are timed until the most time that holds is found by bisection.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from sparsecc.allocators.dynamic_program import UNITS, additive_allocate
from sparsecc.errors import GoalError
from sparsecc.measure.statistics import LogRatio

Choice = Mapping[str, str]
"""Layer -> its form."""
Time = Callable[[Choice], float]
"""How long the model takes in these forms, relative to how long it takes in float."""
Losses = Mapping[str, Mapping[str, float]]
"""Layer -> form -> what the outputs lose when it alone has that form."""

ROUNDS = 8


def require_reach(fastest: LogRatio, speedup: float) -> None:
    """GoalError where the fastest single type is surely too slow; `fastest` is ln of its time relative to float."""
    if math.exp(-fastest.low) < speedup:
        raise GoalError(
            f"quantize: {speedup:g} times as fast is out of reach by types alone, the fastest gives "
            f"{fastest.speedup:.2f}: ask for less, or remove some of it with --ratio"
        )


def choose_within_time(
    losses: Losses,
    shares: Mapping[str, float],
    times: Mapping[str, float],
    base: Choice,
    time: Time,
    speedup: float,
    progress: Callable[[float], None],
) -> dict[str, str]:
    """The forms of least summed loss that run `speedup` times as fast as float: every choice is timed as a whole.

    `shares` are those of the layers in the work, `times` what all layers take in one form relative to float, `base`
    the fastest of these, which comes back where nothing finer holds.
    """
    lost = [list(row.values()) for row in losses.values()]
    costs = [
        [max(0.0, shares[name] * (times[form] - times[base[name]])) for form in row]
        for name, row in losses.items()
    ]
    best, limit = dict(base), 1 / speedup
    low, high = 0.0, sum(max(row) for row in costs) * (1 + len(costs) / UNITS)  # the program rounds costs up
    room = min(max(limit - min(times.values()), 0.0), high)
    for number in range(ROUNDS):
        picks = additive_allocate(lost, costs, room)
        assert picks is not None  # the base costs nothing
        choice = {name: list(row)[pick] for (name, row), pick in zip(losses.items(), picks, strict=True)}
        if choice == best or time(choice) <= limit:
            best, low = choice, room
        else:
            high = room
        progress((number + 1) / ROUNDS)
        if high <= low or room == 0.0:
            break
        room = (low + high) / 2
    return best
