"""Profile a model: latency, and layer by layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sparsecc.backends import backend_named
from sparsecc.compilation import Emit
from sparsecc.targets import target_named
from sparsecc.tasks.inputs import feeds_of, model_file


def profile(request: dict[str, Any], emit: Emit) -> dict[str, Any]:
    """Latency of one model, per layer where asked."""
    path, threads = model_file(Path(request["model"])), int(request.get("threads") or 1)
    target = target_named(request.get("target") or "onnxruntime")
    backend, where = backend_named(target.backend), str(request.get("device") or "local")
    if where != "local":
        emit({"stage": "ask the device", "share": 0.0})
        backend.require_device(where, (path,), times=True, builds=False)
    emit({"stage": "load", "share": 0.0})
    feeds = feeds_of(path, request)
    emit({"stage": "measure", "share": 0.2})
    return {
        "schema": "sparsecc.profile/1",
        "model": path.name,
        "target": {"name": target.name, **({"threads": threads} if target.device == "cpu" else {})},
        "inputs": {name: list(a.shape) for name, a in feeds.items()},
        **backend.latency(
            path,
            feeds,
            lambda what, share: emit({"stage": what, "share": share}),
            device=where,
            threads=threads,
            layers=bool(request.get("layers")),
        ),
    }
