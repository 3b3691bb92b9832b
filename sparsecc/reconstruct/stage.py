"""Repair as a stage of a compile: which method, on which samples, and what the report says of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from sparsecc.axes import Axis, Keep, mask
from sparsecc.calibrate.samples import SYNTHETIC, Samples
from sparsecc.graph.analysis import Analysis
from sparsecc.loading.models import load_ir
from sparsecc.loading.normalise import normalise
from sparsecc.options import CompileOptions
from sparsecc.reconstruct.sweep import Kept, Repair, Settings, repair


def method_for(options: CompileOptions) -> str:
    """`auto` refits where there are samples, and leaves the weights alone where there are none.

    Distillation starts from refitted weights.
    """
    if options.recover == "distill":
        return "reconstruct"
    if options.recover != "auto":
        return options.recover
    return "reconstruct" if options.calibration not in (None, SYNTHETIC) else "none"


def kept_values(analysis: Analysis, keep: Keep) -> Kept:
    """Which slots of the dense model's values are left; taken before removal, usable after it."""
    axes: Mapping[str | None, list[Axis]] = {v.name: found for v, found in analysis.record.axes.items()}

    def kept(name: str, axis: int) -> np.ndarray | None:
        return mask(axes[name][axis], keep) if name in axes else None

    return kept


def run_repair(
    pruned: ir.Model,
    dense: Path,
    kept: Kept,
    samples: Samples,
    options: CompileOptions,
    scratch: Path,
    progress: Callable[[str, float], None],
) -> Repair:
    """Repair a pruned model in place against the dense one on disk."""
    settings = Settings(
        method_for(options),
        seed=options.seed,
        threads=options.threads,
        memory=options.calib_memory,
        progress=progress,
    )
    return repair(normalise(load_ir(dense)), pruned, kept, samples, scratch, settings)


def facts_of(found: Repair, method: str, samples: Samples) -> dict[str, Any]:
    """What the report keeps of a repair."""
    errors = [(row["error_before"], row["error_after"]) for row in found.layers]
    finite = [pair for pair in errors if np.isfinite(pair).all()]
    return {
        "method": method,
        "samples": samples.number,
        "data": "calibration samples" if samples.real else "random inputs",
        "tensors_changed": len(found.changed),
        "mean_layer_error": {
            "before": float(np.mean([b for b, _ in finite])) if finite else 0.0,
            "after": float(np.mean([a for _, a in finite])) if finite else 0.0,
        },
        "layers": found.layers,
    }
