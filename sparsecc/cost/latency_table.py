"""The table of a machine: milliseconds of each shape class over channel counts, measured once and kept."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import numpy as np

from sparsecc.cost.shape_class import ShapeClass, timing_model
from sparsecc.runtime.layer_times import shortest_times
from sparsecc.system.cache import Cache
from sparsecc.system.temp_folders import temporary_folder

SCHEMA = "sparsecc.staircase/1"
_RUNS = 8
_SECONDS = 2.0

Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class Staircase:
    """Milliseconds over counts of input channels (rows of `ms`) and output channels (columns).

    `cliff` is how much more a convolution costs when its input channels are no multiple of four.
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    ms: tuple[tuple[float, ...], ...]
    cliff: float = 1.0

    def at(self, a: int, b: int) -> float:
        """Between the counts that were timed the mean by distance; beyond them in proportion."""
        row, along = _place(self.inputs, a)
        column, across = _place(self.outputs, b)
        found = sum(
            self.ms[i][j] * p * q
            for i, p in ((row, 1 - along), (min(row + 1, len(self.inputs) - 1), along))
            for j, q in ((column, 1 - across), (min(column + 1, len(self.outputs) - 1), across))
        )
        below = min(1.0, a / self.inputs[0]) * min(1.0, b / self.outputs[0])
        beyond = max(1.0, a / self.inputs[-1]) * max(1.0, b / self.outputs[-1])
        misaligned = self.cliff if a % 4 and a > 4 else 1.0
        return found * below * beyond * misaligned

    def to_json(self) -> str:
        fields = {"inputs": self.inputs, "outputs": self.outputs, "ms": self.ms, "cliff": self.cliff}
        return json.dumps({"schema": SCHEMA, **fields})

    @staticmethod
    def of_json(text: bytes) -> Staircase | None:
        """None when it is not one of ours."""
        data = json.loads(text)
        if data.get("schema") != SCHEMA:
            return None
        rows = tuple(tuple(float(t) for t in row) for row in data["ms"])
        return Staircase(tuple(data["inputs"]), tuple(data["outputs"]), rows, float(data["cliff"]))


def _place(counts: Sequence[int], n: int) -> tuple[int, float]:
    """(index of the count below, share of the way to the next)."""
    if n <= counts[0] or len(counts) == 1:
        return 0, 0.0
    if n >= counts[-1]:
        return len(counts) - 1, 0.0
    above = int(np.searchsorted(counts, n, side="right"))
    return above - 1, (n - counts[above - 1]) / (counts[above] - counts[above - 1])


@dataclass
class LatencyTable:
    """Staircases by shape class, for `threads` threads of this machine; what is missing is measured."""

    threads: int = 1
    cache: Cache = field(default_factory=Cache)
    progress: Progress = lambda what, share: None
    measured: int = 0
    _known: dict[ShapeClass, Staircase] = field(default_factory=dict)

    def learn(self, classes: Iterable[ShapeClass]) -> None:
        """Have a staircase of each; some tens of seconds where none of them is known."""
        wanted = list(dict.fromkeys(classes))
        for number, one in enumerate(wanted):
            if one not in self._known:
                self.progress(f"timing {one.op} {one.inputs}->{one.outputs}", number / len(wanted))
                self._known[one] = self._kept(one) or self._measure(one)

    def ms(self, one: ShapeClass, a: int, b: int) -> float:
        """Milliseconds at these channel counts. The class must have been learnt."""
        return self._known[one].at(a, b)

    def staircase(self, one: ShapeClass) -> Staircase:
        return self._known[one]

    def key(self, what: str) -> str:
        """The cache key of something measured here: processor, runtime, threads."""
        return f"latency/{_processor()}/ort{version('onnxruntime')}/threads{self.threads}/{what}"

    def _kept(self, one: ShapeClass) -> Staircase | None:
        stored = self.cache.get(self.key(one.key))
        return None if stored is None else Staircase.of_json(stored)

    def _measure(self, one: ShapeClass) -> Staircase:
        inputs, outputs = one.grid()
        each = self._seconds(one) * _RUNS * 0.4
        while each * len(inputs) * len(outputs) > _SECONDS and len(inputs) * len(outputs) > 9:
            inputs, outputs = _thinned(inputs), _thinned(outputs)
        points = [(a, b) for a in inputs for b in outputs]
        odd = _odd_point(one, inputs, outputs)
        times = self.times(one, points + ([odd] if odd else []))
        rows = tuple(tuple(times[i * len(outputs) : (i + 1) * len(outputs)]) for i in range(len(inputs)))
        found = Staircase(tuple(inputs), tuple(outputs), rows)
        if odd is not None:
            cliff = times[-1] / max(found.at(odd[0] // 4 * 4, odd[1]), 1e-6)
            found = Staircase(found.inputs, found.outputs, rows, max(1.0, cliff))
        self.cache.put(self.key(one.key), found.to_json().encode())
        self.measured += 1
        return found

    def _seconds(self, one: ShapeClass) -> float:
        """How long the dense one takes, once."""
        return self.times(one, [(one.inputs, 1 if one.op == "Depthwise" else one.outputs)], 2)[0] / 1e3

    def times(self, one: ShapeClass, points: Sequence[tuple[int, int]], runs: int = _RUNS) -> list[float]:
        """Milliseconds of the fastest run at each point: what the kernel takes when nothing disturbs it."""
        import onnx

        model, feeds = timing_model(one, points)
        with temporary_folder("scratch") as scratch:
            path = Path(scratch) / "timing.onnx"
            onnx.save(model, path)
            found = shortest_times(path, feeds, threads=self.threads, runs=runs)
        return [max(found.get(f"p{number}", math.nan), 1e-3) for number in range(len(points))]


def _thinned(counts: list[int]) -> list[int]:
    """About half of the counts, the smallest and the largest among them, for operators that take long."""
    return counts if len(counts) < 4 else [*counts[:-1:2], counts[-1]]


def _odd_point(one: ShapeClass, inputs: list[int], outputs: list[int]) -> tuple[int, int] | None:
    """A count beside the fast path: one input channel more than a step."""
    if one.op != "Conv" or len(inputs) < 3:
        return None
    return inputs[len(inputs) // 2] + 1, outputs[len(outputs) // 2]


def _processor() -> str:
    from sparsecc.system.machine import device

    return f"{platform.machine()}/{device()['processor']}"
