"""What each layer takes in two forms of a model, as ONNX Runtime's own trace tells it, run in turn in one process."""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from sparsecc.rules import Trait, operators_with
from sparsecc.runtime.layer_times import typical_times
from sparsecc.runtime.runner import Feeds, LayerTime
from sparsecc.runtime.session import open_session
from sparsecc.system.temp_folders import temporary_folder

SECONDS = 1.0
"""How long both run in all, once warm; a few runs of each are made in any case."""

_WARM_UP = 2
_FEWEST, _MOST = 3, 20
"""Runs of each that are counted."""
_EVENTS = 40_000
"""Nodes times runs that a trace holds at most, where the fewest runs are not more."""
_COMPUTES = operators_with(Trait.COMPUTES)
_BEHIND_A_NAME = "_/."
"""What stands behind a node's name in that of a kernel made of it: `conv1_token_3`, `fc/MatMulScaleFusion/`."""

_IN_FLOAT = "InsertedPrecisionFreeCast_"
"""What ONNX Runtime puts before the name of a value in fp16 that it computes in float32."""


@dataclass(frozen=True)
class SideTimes:
    """One form of the model: milliseconds a run, by the layer of the dense model that they are of, and of all else."""

    layers: Mapping[str, float]
    rest: float


@dataclass(frozen=True)
class LayerPair:
    """The shortest by the wall clock of `runs` runs of each, which other work on the machine disturbs least.

    Medians on a busy machine told of a layer what the others did. Tracing takes time as well: no sum of these is a
    latency.
    """

    before: SideTimes
    after: SideTimes
    runs: int

    def facts(self) -> dict[str, Any]:
        """`layer_times` of the report: how they were measured, and what all else takes."""
        rest = {"before_ms": round(self.before.rest, 6), "after_ms": round(self.after.rest, 6)}
        return {"how": "ONNX Runtime's trace", "clock": "wall", "runs": self.runs, "rest": rest}

    def beside(self, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """The report's rows of layers with `ms_before` and `ms_after`; None where no kernel of its own computes it."""
        sides = {"ms_before": self.before.layers, "ms_after": self.after.layers}
        return [
            {**row, **{key: _rounded(times.get(row["name"])) for key, times in sides.items()}} for row in rows
        ]


def _rounded(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else round(milliseconds, 6)


def time_layers(dense: Path, compiled: Path, feeds: tuple[Feeds, Feeds], *, threads: int = 1) -> LayerPair:
    """The time of every layer of the dense model, there and in what was compiled of it, in runs that take turns.

    InputError when a model does not load or run.
    """
    with temporary_folder("scratch") as scratch:
        sides = [
            _Traced(path, Path(scratch) / name, threads)
            for name, path in (("before", dense), ("after", compiled))
        ]
        calls = [side.runner.prepared(given) for side, given in zip(sides, feeds, strict=True)]
        most = max(_FEWEST, min(_MOST, _EVENTS // max(len(side.kernels) for side in sides)))
        runs = _in_turn(calls, most)
        layers = _Layers(ir.load(dense))
        before, after = (layers.times(side.times(), side.kernels) for side in sides)
    return LayerPair(before, after, runs)


def _in_turn(calls: Sequence[Callable[[], object]], most: int) -> int:
    """Run them in alternating order, warm-up first; how many runs of each count. Each ran once before."""
    end = float("inf")
    for number in range(1 - _WARM_UP, most):
        if number == 0:
            end = time.perf_counter() + SECONDS
        if number >= _FEWEST and time.perf_counter() > end:
            return number
        for call in calls if number % 2 else reversed(calls):
            call()
    return most


class _Traced:
    """A session that traces, and the nodes of the graph that it really runs by their names."""

    def __init__(self, path: Path, name: Path, threads: int) -> None:
        graph = name.with_suffix(".onnx")
        self.runner = open_session(path, threads=threads, trace=name, optimized=graph, weights_beside=True)
        nodes = ir.traversal.RecursiveGraphIterator(ir.load(graph).graph)
        self.kernels = {node.name or "": node for node in nodes}

    def times(self) -> list[LayerTime]:
        return typical_times(self.runner.traced(), warm_up=_WARM_UP, typical=min)


class _Layers:
    """The layers of the dense model, and which kernel computes which.

    A kernel is of the layer that makes what it puts out, or else of the one whose name its own begins with: ONNX
    Runtime calls a fused kernel after the value behind it, all others after the node. One that several layers were
    fused into is of the last of them that has no kernel of its own.
    """

    def __init__(self, dense: ir.Model) -> None:
        nodes = list(ir.traversal.RecursiveGraphIterator(dense.graph))
        self._names = {node.name for node in nodes if node.op_type in _COMPUTES and node.name}
        self._makers = {value.name: node for node in nodes for value in node.outputs if value.name}

    def times(self, measured: Sequence[LayerTime], kernels: Mapping[str, ir.Node]) -> SideTimes:
        """The time of the kernels of each layer, and of all that is of none."""
        of = self.of_kernels([node for node in kernels.values() if node.op_type in _COMPUTES])
        layers: dict[str, float] = defaultdict(float)
        rest = 0.0
        for one in measured:
            if (layer := of.get(one.name)) is None:
                rest += one.microseconds / 1e3
            else:
                layers[layer] += one.microseconds / 1e3
        return SideTimes(dict(layers), rest)

    def of_kernels(self, kernels: Sequence[ir.Node]) -> dict[str, str]:
        """Name of kernel -> name of layer. Those that bear a layer's name, or make its very output, take it first."""
        found = {kernel.name or "": layer for kernel in kernels if (layer := self._own(kernel)) is not None}
        taken = frozenset(found.values())
        for kernel in kernels:
            name = kernel.name or ""
            if (
                name not in found
                and (layer := self._fused(kernel, taken) or self._begun_by(name)) is not None
            ):
                found[name] = layer
        return found

    def _own(self, kernel: ir.Node) -> str | None:
        makers = [maker.name for maker in self._made_by(kernel)]
        return next((name for name in (kernel.name, *makers) if name in self._names), None)

    def _made_by(self, kernel: ir.Node) -> list[ir.Node]:
        """The dense model's nodes that make what a kernel puts out; one in the blocked layout is named after it."""
        values = [(kernel.name or "").removesuffix("_nchwc"), *(value.name or "" for value in kernel.outputs)]
        plain = [value.removeprefix(_IN_FLOAT) for value in values]
        return [self._makers[value] for value in plain if value in self._makers]

    def _fused(self, kernel: ir.Node, taken: frozenset[str]) -> str | None:
        """The nearest layer before what a kernel puts out and behind what is given to it."""
        given = {value.name for value in kernel.inputs if value is not None}
        waiting = deque(self._made_by(kernel)[:1])
        seen = set(waiting)
        while waiting:
            node = waiting.popleft()
            if node.name in taken:
                continue
            if node.name in self._names:
                return node.name
            for value in node.inputs:
                before = value.producer() if value is not None and value.name not in given else None
                if before is not None and before not in seen:
                    seen.add(before)
                    waiting.append(before)
        return None

    def _begun_by(self, name: str) -> str | None:
        """The layer with the longest name that a kernel's begins with."""
        ends = [end for end, sign in enumerate(name) if sign in _BEHIND_A_NAME]
        return next((name[:end] for end in reversed(ends) if name[:end] in self._names), None)
