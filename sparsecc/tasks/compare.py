"""Compare two models: outputs and latency, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sparsecc.compilation import Emit
from sparsecc.errors import InputError
from sparsecc.loading.private_copy import private_copy
from sparsecc.loss.quality import told
from sparsecc.measure.interleave import Budget
from sparsecc.measure.interleave import compare as compare_runs
from sparsecc.runtime.numerics import worst_error
from sparsecc.runtime.session import open_session
from sparsecc.system.temp_folders import temporary_folder
from sparsecc.tasks.inputs import feeds_of, model_file


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
    feeds = feeds_of(a, request)
    reference, found = first.run(feeds), second.run(feeds)
    if set(reference) != set(found):
        raise InputError(
            f"{b.name} has outputs {', '.join(found)}, not {', '.join(reference)}: compare like with like"
        )
    emit({"stage": "measure", "share": 0.2})
    timed = compare_runs(
        first.prepared(feeds), second.prepared(feeds), budget=Budget(seconds=15), threads=threads
    )
    return {
        "schema": "sparsecc.compare/1",
        "a": str(a),
        "b": str(b),
        "outputs": {"max_relative_error": worst_error(reference, found), **told([reference], [found])},
        "latency": timed.to_json(),
        "bytes": {"before": a.stat().st_size, "after": b.stat().st_size},
    }
