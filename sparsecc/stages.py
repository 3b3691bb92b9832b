"""Which passes a compile runs after pruning, in order."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sparsecc.errors import InputError
from sparsecc.options import CompileOptions
from sparsecc.targets import target_named

if TYPE_CHECKING:
    from sparsecc.passes.base import Pass


def build_options(options: CompileOptions) -> dict[str, Any]:
    """What the target's backend is told about the build."""
    chosen: dict[str, Any] = dict(options.build)
    backend = target_named(options.target).backend
    if backend.startswith("onnxruntime") or backend == "onnx":
        if options.emit not in (None, "onnx", "ort"):
            raise InputError(f"--emit {options.emit}: target {options.target} emits onnx or ort")
        return chosen | ({"ort_format": True} if options.emit == "ort" else {})
    if options.profiles:
        chosen["profiles"] = {name: _profile(shapes) for name, shapes in options.profiles.items()}
    if options.emit is not None:
        chosen["emit"] = options.emit
    if options.device != "local":
        chosen["device"] = options.device
    return chosen | ({"sparse_weights": True} if options.sparsity else {})


def _profile(shapes: tuple[tuple[int, ...], ...]) -> str:
    """(least, usual, largest) as builders spell it: `1x3|2x3|4x3`."""
    return "|".join("x".join(str(d) for d in shape) for shape in shapes)


def passes_for(options: CompileOptions) -> list[Pass]:
    """Patterns first, then types: zeros stay exact zeros through quantization."""
    target = target_named(options.target)
    passes: list[Pass] = []
    if options.sparsity:
        from sparsecc.passes.sparsity import Sparsify

        passes.append(Sparsify(pattern=options.sparsity))
    if options.quantize:
        if options.quantize not in target.types:
            known = ", ".join(sorted(target.types))
            raise InputError(f"target {target.name} does not run {options.quantize}: it has {known}")
        from sparsecc.passes.quantize import Quantize

        passes.append(Quantize(type=options.quantize))
    return passes
