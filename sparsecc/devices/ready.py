"""Ask a device whether it can measure, before anything long is begun for it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from sparsecc.devices.device import PYTHON, Device
from sparsecc.errors import SystemFailureError, UnavailableError
from sparsecc.escaping import one_line

SECONDS = 60.0
"""How long an answer may take: a small board needs a while to load ONNX Runtime."""

_ASK = """
import json, os, shutil, sys
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
facts = {"python": "%d.%d.%d" % sys.version_info[:3], "free_bytes": shutil.disk_usage(".").free}
for name in ("numpy", "onnxruntime"):
    try:
        facts[name] = __import__(name).__version__
    except ImportError:
        facts[name] = None
print(json.dumps(facts))
"""
OLDEST = (3, 8)
"""The oldest Python that `devices/runner.py` runs on."""
SPARE_BYTES = 64 << 20
"""What must be free beside the models."""


@dataclass(frozen=True)
class Facts:
    """What a device says of itself; None for what it lacks. `free_bytes` are those of the disk with our folder."""

    system: str | None = None
    python: str | None = None
    numpy: str | None = None
    onnxruntime: str | None = None
    free_bytes: int | None = None


def ask(device: Device) -> Facts:
    """Its system, Python, numpy, ONNX Runtime and free disk. Raises what a lost device raises."""
    named = device.run(["uname", "-srm"], timeout=SECONDS)
    system = one_line(named.stdout.strip(), 120) if named.status == 0 else None
    done = device.run([device.python, "-c", _ASK], timeout=SECONDS)
    try:
        facts = json.loads(done.stdout.strip().splitlines()[-1]) if done.status == 0 else {}
        free = facts.pop("free_bytes", None)
        texts = {name: one_line(str(fact), 40) for name, fact in facts.items() if fact is not None}
        return Facts(system, **texts, free_bytes=free if isinstance(free, int) else None)
    except (ValueError, IndexError, TypeError, AttributeError):
        return Facts(system)


def require_ready(device: Device, models: tuple[Path, ...] = ()) -> Facts:
    """What `ask` finds. UnavailableError for what is missing there, SystemFailureError where two models of the size of
    the largest of these files do not fit."""
    facts = ask(device)
    missing = [name for name in ("numpy", "onnxruntime") if getattr(facts, name) is None]
    if facts.python is None:
        raise UnavailableError(f"{device.spec} has no {one_line(device.python, 80)}: {_remedy(device)}")
    if tuple(int(part) for part in facts.python.split(".")[:2]) < OLDEST:
        raise UnavailableError(f"{device.spec} has Python {facts.python}, older than 3.8: {_remedy(device)}")
    if missing:
        install = f"run {device.python} -m pip install {' '.join(missing)} there"
        other = "another Python is named with ?python=PATH after the address"
        raise UnavailableError(f"{device.spec} has no {' and no '.join(missing)}: {install}; {other}")
    needed = 2 * max((_size(model) for model in models), default=0) + SPARE_BYTES
    if facts.free_bytes is not None and facts.free_bytes < needed:
        free, least = facts.free_bytes >> 20, needed >> 20
        raise SystemFailureError(
            f"{device.spec} has {free} MiB free, and measuring takes {least} MiB: free some there"
        )
    return facts


def _remedy(device: Device) -> str:
    if device.spec.startswith("adb"):
        return (
            "a phone as it is sold has none, and no package brings a native runner for it; install Termux with "
            "python, numpy, onnxruntime and openssh there, and measure on ssh://PHONE:8022"
        )
    return (
        f"install Python 3.8 or newer with numpy and onnxruntime there, or name another than {PYTHON} with "
        "?python=PATH after the address"
    )


def _size(model: Path) -> int:
    """Bytes of a model file with the weights beside it."""
    files = (model, model.with_name(model.name + ".data"))
    return sum(file.stat().st_size for file in files if file.is_file())
