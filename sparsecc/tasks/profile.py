"""Profile a model: latency, and layer by layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sparsecc.backends import backend_named
from sparsecc.bundle.folder import Bundle
from sparsecc.bundle.signing import signature_check
from sparsecc.errors import GoalError
from sparsecc.loading.package import model_file
from sparsecc.system.progress import Emit
from sparsecc.targets import target_named
from sparsecc.tasks.inputs import feeds_of


def profile(request: dict[str, Any], emit: Emit) -> dict[str, Any]:
    """Latency of one model, per layer where asked."""
    if request.get("key"):
        accept_signed_bundle(Bundle.open(Path(request["model"])), str(request["key"]))
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


def accept_signed_bundle(bundle: Bundle, key: str) -> None:
    """Take a bundle's engine, if it has one, for good. GoalError where it is not signed by this key as it is."""
    from sparsecc.backends.nvidia.plans import accept_signed
    from sparsecc.backends.nvidia.trtexec import ENGINE

    check = signature_check(bundle, key)
    if not check["ok"]:
        raise GoalError(f"{bundle.folder}: signature failed: {check['detail']}")
    bundle.require_intact()
    if (bundle.folder / ENGINE).is_file():
        accept_signed(bundle.folder / ENGINE)
