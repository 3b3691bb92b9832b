"""Types under a speed: the layers that lose most stay finer for as long as time is left.

Times of layers do not add up from float, where a lone integer layer pays for conversions that a chain of them does
not need. So each layer is taken out of the fastest model instead, and the whole choice is timed in the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import onnx_ir as ir

from sparsecc.allocators.dynamic_program import additive_allocate
from sparsecc.compilation import Compilation
from sparsecc.errors import GoalError, InputError
from sparsecc.measure.interleave import Budget, compare
from sparsecc.measure.statistics import LogRatio
from sparsecc.runtime.runner import Feeds
from sparsecc.runtime.session import open_session

Choice = Mapping[str, str]
"""Layer -> its form."""
Time = Callable[[Choice], float]
"""How long the model takes in these forms, relative to how long it takes in float."""
Losses = Mapping[str, Mapping[str, float]]
"""Layer -> form -> what the outputs lose when it alone has that form."""

ROUNDS = 8
_BRIEF = Budget(pairs=15, seconds=1.0, warmup_seconds=0.05)
_LONG = Budget(pairs=60, seconds=4.0)


@dataclass
class Stopwatch:
    """Times models beside one in float, interleaved, on the first of the calibration inputs."""

    model: ir.Model
    compilation: Compilation
    _feeds: Feeds = field(init=False)
    _float: Callable[[], object] = field(init=False)

    def __post_init__(self) -> None:
        if not (self.compilation.target.timed_here and self.compilation.options.measure):
            raise InputError(
                "quantize: speedup is timed on this machine: use --target onnxruntime, and not --no-measure"
            )
        self._feeds = self.compilation.pass_feeds[0]
        self._float = open_session(self.model).prepared(self._feeds)

    def ratio(self, changed: ir.Model, *, brief: bool = True) -> LogRatio:
        """The time of a model to that in float."""
        run = open_session(changed).prepared(self._feeds)
        return compare(self._float, run, budget=_BRIEF if brief else _LONG).ratio()

    def share(self, changed: ir.Model) -> float:
        """The time of a model as a share of that in float."""
        return math.exp(self.ratio(changed).median)


def choose_within_time(
    losses: Losses,
    base: Choice,
    fastest: float,
    time: Time,
    speedup: float,
    progress: Callable[[float], None],
) -> dict[str, str]:
    """The forms of least summed loss that run `speedup` times as fast as float, or nearly: the last word is a
    timing of the whole. `base` is the fastest known choice, `fastest` its time. GoalError where that is too slow.
    """
    limit = 1 / speedup
    if fastest > limit:
        raise GoalError(
            f"quantize: {speedup:g} times as fast is out of reach by types alone, the fastest gives "
            f"{1 / fastest:.2f}: ask for less, or remove some of it with --ratio"
        )
    extra: dict[str, list[float]] = {}
    for number, (name, row) in enumerate(losses.items()):
        each = (0.0 if form == base[name] else time({**base, name: form}) - fastest for form in row)
        extra[name] = list(each)
        progress((number + 1) / len(losses))
    least = {name: min(row) for name, row in extra.items()}
    costs = [[cost - least[name] for cost in row] for name, row in extra.items()]
    room = left = limit - fastest
    for _ in range(ROUNDS):
        lost = [list(row.values()) for row in losses.values()]
        picks = additive_allocate(lost, costs, room - sum(least.values()))
        if picks is None:
            break
        choice = {name: list(row)[pick] for (name, row), pick in zip(losses.items(), picks, strict=True)}
        taken = time(choice) - fastest
        if taken <= left:
            return choice
        room *= 0.97 * left / taken
    return dict(base)
