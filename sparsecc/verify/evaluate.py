"""The user's own metric, on the dense and on the compiled model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sparsecc.compilation import Compilation
from sparsecc.data.in_memory import function_in_parent
from sparsecc.data.named import MEMORY
from sparsecc.errors import InputError
from sparsecc.runtime.session import open_session
from sparsecc.system.user_code import file_and_function, function_in
from sparsecc.verify.metrics import NAMED_METRICS, Labelled, metric_named

if TYPE_CHECKING:
    from sparsecc.backends.base import Backend
    from sparsecc.verify.probes import Probes

Run = Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]


def score_of_dense(compilation: Compilation) -> float | None:
    """The user's metric of the dense model, before any long work: what is wrong with a metric is said then."""
    options, dense = compilation.options, compilation.dense
    if options.evaluate is None:
        return None
    fast = dense.runner if dense.by_parts else open_session(dense.path, threads=options.threads)
    return score(metric_of(compilation), fast.run)


def evaluate(probes: Probes, backend: Backend, compiled: Path, before: float | None) -> dict[str, Any] | None:
    """`--evaluate file.py:function`: the function gets `run(feeds) -> outputs` and returns a number (larger = better).

    `before` is what it gave for the dense model.
    """
    asked, narrowed = probes.compilation.options.evaluate, probes.compilation.narrowed
    if asked is None:
        return None
    function, small = metric_of(probes.compilation), probes.artefact(backend, compiled)
    after = score(function, lambda feeds: small.run(narrowed.feeds(feeds)))
    return {"metric": function.__name__, "before": before, "after": after}


def score(function: Callable[[Run], Any], run: Run) -> float:
    """The metric of one model. InputError where the user's function gives no number; what it raises is told as its own
    (`sparsecc/system/user_code.py`)."""
    value = function(run)
    if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not np.isfinite(value):
        raise InputError(f"--evaluate {function.__name__} returned {value!r}: it must return a finite number")
    return float(value)


def metric_of(compilation: Compilation) -> Callable[..., Any]:
    """What `--evaluate` asks for: a built-in metric on `--labels`, a function in memory, which runs in the parent, or
    that of a `file.py:function`, the user's own code, which runs here."""
    options = compilation.options
    spec = str(options.evaluate)
    if spec.lower() in NAMED_METRICS:
        data = Labelled(str(options.labels), compilation.dense.model, compilation.file.parent)
        return metric_named(spec.lower(), data)
    return function_in_parent(spec) if spec.startswith(MEMORY) else function_of(spec)


def function_of(spec: str) -> Callable[..., Any]:
    """The function that `file.py:function` names."""
    return function_in(*file_and_function(spec, "--evaluate"), "--evaluate")
