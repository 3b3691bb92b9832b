"""Per-layer times from ONNX Runtime's own trace (a Chrome trace; `dur` in microseconds per node)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from sparsecc.errors import InputError, InternalError
from sparsecc.runtime.runner import Feeds, LayerTime
from sparsecc.system.temp_folders import temporary_folder

_WARM_UP = 3
_SUFFIX = "_kernel_time"
_BLOCKED = "_nchwc"


def layer_times(path: Path, feeds: Feeds, *, threads: int = 1, runs: int = 20) -> list[LayerTime]:
    """Typical microseconds per run of every node, in the order in which they run, after 3 warm-up runs that are not
    counted. The suffix of the blocked layout is taken off their names.

    Nodes that run several times within one run (loop bodies) are summed. InputError when the model does not
    load or run.
    """
    events = traced_events(path, feeds, threads=threads, runs=runs)
    found = typical_times(events, warm_up=_WARM_UP)
    return [replace(layer, name=layer.name.removesuffix(_BLOCKED)) for layer in found]


def shortest_kernels(path: Path, feeds: Feeds, *, threads: int = 1, runs: int = 10) -> list[LayerTime]:
    """The fastest time of every node over the runs: what it takes when nothing else disturbs it."""
    layers: dict[str, LayerTime] = {}
    for event in traced_events(path, feeds, threads=threads, runs=runs):
        name = str(event.get("name", ""))
        if event.get("cat") == "Node" and name.endswith(_SUFFIX):
            facts = event.get("args", {})
            key = f"{facts.get('node_index', '')}:{name}"
            found = replace(_layer(name.removesuffix(_SUFFIX), facts), microseconds=float(event["dur"]))
            known = layers.get(key, found)
            layers[key] = found if found.microseconds < known.microseconds else known
    return list(layers.values())


def shortest_times(path: Path, feeds: Feeds, *, threads: int = 1, runs: int = 10) -> dict[str, float]:
    """Node name -> milliseconds of its fastest run; the suffix of the blocked layout is taken off."""
    kernels = shortest_kernels(path, feeds, threads=threads, runs=runs)
    return {kernel.name.removesuffix(_BLOCKED): kernel.microseconds / 1e3 for kernel in kernels}


def traced_events(path: Path, feeds: Feeds, *, threads: int, runs: int) -> list[dict[str, Any]]:
    """The events of ONNX Runtime's trace, warm-up runs first."""
    from sparsecc.runtime.session import open_session

    if runs < 1:
        raise InputError(f"a profile needs at least one run, not {runs}")
    with temporary_folder("scratch") as scratch:
        runner = open_session(path, threads=threads, trace=Path(scratch) / "trace")
        for _ in range(_WARM_UP + runs):
            runner.run(feeds)
        return runner.traced()


def typical_times(
    events: Iterable[Mapping[str, Any]], *, warm_up: int, typical: Callable[[list[float]], float] = median
) -> list[LayerTime]:
    """The median time of the nodes in a trace times how often they run within a run; `warm_up` runs left out.

    The median, because a run in which the system took the processor away for 20 ms says nothing of a layer; `min`
    where it does so most of the time.
    """
    events = list(events)
    runs = sorted(e["ts"] for e in events if e.get("cat") == "Session" and e.get("name") == "model_run")
    if len(runs) <= warm_up:
        raise InternalError(
            f"the trace of ONNX Runtime holds {len(runs)} runs, more than {warm_up} were made"
        )
    start, counted = runs[warm_up], len(runs) - warm_up
    layers: dict[str, LayerTime] = {}
    times: dict[str, list[float]] = {}
    for event in events:
        name = str(event.get("name", ""))
        if event.get("cat") != "Node" or not name.endswith(_SUFFIX) or event["ts"] < start:
            continue
        facts = event.get("args", {})
        key = f"{facts.get('node_index', '')}:{name}"
        layers.setdefault(key, _layer(name.removesuffix(_SUFFIX), facts))
        times.setdefault(key, []).append(float(event["dur"]))
    return [
        replace(layer, microseconds=typical(times[key]) * len(times[key]) / counted)
        for key, layer in layers.items()
    ]


def _layer(name: str, facts: Mapping[str, Any]) -> LayerTime:
    provider = str(facts.get("provider", "")).removesuffix("ExecutionProvider")
    return LayerTime(name, str(facts.get("op_name", "")), 0.0, provider, _output_type(facts))


def _output_type(facts: Mapping[str, Any]) -> str:
    """The element type of the first output, where the trace tells it: [{"float": [1, 64, 8, 8]}]."""
    shapes = facts.get("output_type_shape") or [{}]
    return next(iter(shapes[0]), "") if isinstance(shapes[0], dict) else ""
