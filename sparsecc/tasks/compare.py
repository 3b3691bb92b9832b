"""Compare two models: outputs and latency, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir

from sparsecc.data.files import feeds_from
from sparsecc.data.samples import Samples, merged
from sparsecc.errors import InputError
from sparsecc.graph.analysis import analyse
from sparsecc.loading.models import load_ir
from sparsecc.loading.normalise import normalise
from sparsecc.loading.package import model_file
from sparsecc.loading.private_copy import private_copy
from sparsecc.loss.answers import questions
from sparsecc.loss.measure import Outputs
from sparsecc.loss.parts import parts_of_outputs
from sparsecc.loss.quality import told
from sparsecc.measure.fresh_sessions import clock_for
from sparsecc.measure.interleave import Budget
from sparsecc.measure.interleave import compare as compare_runs
from sparsecc.runtime.numerics import worst_error
from sparsecc.runtime.session import open_session
from sparsecc.system.progress import Emit
from sparsecc.system.temp_folders import temporary_folder
from sparsecc.tasks.inputs import feeds_of


def compare(request: dict[str, Any], emit: Emit) -> dict[str, Any]:
    """Outputs and latency of two models, side by side, interleaved."""
    a, b = (model_file(Path(request[side])) for side in ("a", "b"))
    threads = int(request.get("threads") or 1)
    emit({"stage": "load", "share": 0.0})
    with temporary_folder("scratch") as scratch:
        first, second = (
            open_session(private_copy(path, scratch / side), threads=threads)
            for path, side in ((a, "a"), (b, "b"))
        )
    model = normalise(load_ir(a))
    samples = merged(feeds_from(request["data"], model, a.parent), model) if request.get("data") else []
    feeds = samples[0] if samples else feeds_of(a, request)
    reference, found = ([runner.run(one) for one in samples or [feeds]] for runner in (first, second))
    if set(reference[0]) != set(found[0]):
        raise InputError(
            f"{b.name} has outputs {', '.join(found[0])}, not {', '.join(reference[0])}: compare like with like"
        )
    emit({"stage": "measure", "share": 0.2})
    timed = compare_runs(
        first.prepared(feeds),
        second.prepared(feeds),
        budget=Budget(seconds=15),
        clock=clock_for(threads),
        threads=threads,
    )
    return {
        "schema": "sparsecc.compare/1",
        "a": str(a),
        "b": str(b),
        "outputs": {
            "max_relative_error": max(map(worst_error, reference, found)),
            **_told(model, reference, found),
            "data": "samples" if samples else "random inputs",
            "samples": Samples(tuple(samples or [feeds]), bool(samples)).number,
        },
        "inputs": {name: list(array.shape) for name, array in feeds.items()},
        "latency": timed.to_json(),
        "bytes": {"before": a.stat().st_size, "after": b.stat().st_size},
    }


def _told(model: ir.Model, reference: Sequence[Outputs], found: Sequence[Outputs]) -> dict[str, Any]:
    """What B gives beside A, by the parts of A's outputs."""
    parts = parts_of_outputs(analyse(model))
    return told(reference, found, parts, questions(model, parts))
