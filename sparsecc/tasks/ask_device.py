"""The device is asked first: what it lacks is said before a model is read for it."""

from __future__ import annotations

from pathlib import Path

from sparsecc.backends import backend_named
from sparsecc.options import CompileOptions
from sparsecc.targets import target_named


def require_device(options: CompileOptions, model: Path, *, times: bool, builds: bool) -> None:
    """UnavailableError where a compile's device is out of reach or lacks trtexec, Python, numpy or ONNX Runtime,
    whichever the target needs there; SystemFailureError where its disk is too small for the model.

    `times` and `builds` say what the compile will do there, where its target can.
    """
    if options.device != "local":
        backend = backend_named(target_named(options.target).backend)
        backend.require_device(
            options.device, (model,), times=times, builds=builds and options.emit != "onnx"
        )
