"""The packages that ONNX Runtime comes in: each writes the same files, so only one of them may be installed."""

from __future__ import annotations

from importlib import metadata

PACKAGES = (
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-openvino",
    "onnxruntime-qnn",
    "onnxruntime-rocm",
    "onnxruntime-migraphx",
    "onnxruntime-training",
)
"""By name; the first is what sparsecc brings, and each of the others stands in for it."""


def installed() -> dict[str, str]:
    """Those that are installed here -> version."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def collision() -> str:
    """What is wrong where several are installed; "" otherwise."""
    found = [f"{name} {version}" for name, version in installed().items()]
    return f"{' and '.join(found)} overwrite each other's files" if len(found) > 1 else ""


def remedy() -> str:
    """The commands that leave one of them, the most special one."""
    found = list(installed()) or [PACKAGES[0]]
    again = f"pip install {found[-1]}"
    return again if len(found) == 1 else f"pip uninstall -y {' '.join(found)} && {again}"


def unloadable(error: Exception) -> str:
    """What to say where ONNX Runtime does not load."""
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return f"onnxruntime does not load ({collision() or reason}): run {remedy()}"
