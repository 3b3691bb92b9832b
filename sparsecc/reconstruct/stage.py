"""Repair as a stage of a compile: which method, on which samples, and what the report says of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from sparsecc.axes.algebra import Axis, Keep, mask
from sparsecc.calibrate.batch_norm_matching import matched, matched_pair, norms_of
from sparsecc.calibrate.mixtures import Mixture
from sparsecc.compilation import Compilation
from sparsecc.data.samples import Samples
from sparsecc.graph.analysis import Analysis
from sparsecc.loading.models import load_ir
from sparsecc.loading.normalise import normalise
from sparsecc.options import CompileOptions
from sparsecc.reconstruct.dense_values import DenseValues
from sparsecc.reconstruct.experts import mend_experts
from sparsecc.reconstruct.layerwise import Kept, Repair, repair


def method_for(options: CompileOptions, model: ir.Model) -> str:
    """`auto` refits where there are samples, and without them on random inputs where batch norms tell what these
    should look like; else it leaves the weights alone.

    Distillation starts from refitted weights.
    """
    if options.recover == "distill":
        return "reconstruct"
    if options.recover != "auto":
        return options.recover
    return "reconstruct" if options.samples is not None or norms_of(model) else "none"


def kept_values(analysis: Analysis, keep: Keep) -> Kept:
    """Which slots of the dense model's values are left; taken before removal, usable after it."""
    axes: Mapping[str | None, list[Axis]] = {v.name: found for v, found in analysis.record.axes.items()}

    def kept(name: str, axis: int) -> np.ndarray | None:
        return mask(axes[name][axis], keep) if name in axes else None

    return kept


def run_repair(
    compilation: Compilation,
    dense: Path,
    pruned: ir.Model,
    kept: Kept,
    mixtures: Sequence[Mixture] = (),
) -> Repair:
    """Repair a pruned model in place against the dense one on disk: first the experts of its mixtures.

    Random inputs are matched to what batch norms remember, where there are any; experts are left alone then.
    """
    options, samples = compilation.options, compilation.samples
    method, wide = method_for(options, pruned), normalise(load_ir(dense))
    if samples.real:
        return repair_from(compilation, wide, pruned, kept, samples, method, mixtures)
    walked = {"threads": options.threads, "memory": options.working_memory}
    with (
        matched(wide, samples, compilation.scratch.matched, **walked),
        matched_pair(wide, pruned, kept),
    ):
        return repair(compilation, wide, pruned, kept, samples, method)


def repair_from(
    compilation: Compilation,
    dense: ir.Model,
    pruned: ir.Model,
    kept: Kept,
    samples: Samples,
    method: str,
    mixtures: Sequence[Mixture] = (),
    known: DenseValues | None = None,
) -> Repair:
    """Repair a pruned model in place on real samples: first the experts of its mixtures, then layer after layer."""
    if method == "none":
        return Repair()
    experts = Repair()
    if method == "reconstruct":
        experts = mend_experts(compilation, mixtures, dense, pruned, kept, samples)
    found = repair(compilation, dense, pruned, kept, samples, method, known)
    return Repair(
        experts.changed + found.changed, experts.layers + found.layers, experts.remarks + found.remarks
    )


def data_of(samples: Samples, model: ir.Model) -> str:
    """What a repair learnt from, in words."""
    if samples.real:
        return "calibration samples"
    number = len(norms_of(model))
    return f"random inputs matched to {number} batch norms" if number else "random inputs"


def left_alone(found: Repair) -> str | None:
    """A sentence where repair could not reach most layers."""
    number, mended = len(found.remarks), len(found.layers)
    if number <= mended:
        return None
    ((reason, _),) = Counter(skip.reason for skip in found.remarks).most_common(1)
    return f"repair left {number} of {number + mended} layers alone, most because {reason}"


def facts_of(found: Repair, method: str, samples: Samples, model: ir.Model) -> dict[str, Any]:
    """What the report keeps of a repair."""
    errors = [(row["error_before"], row["error_after"]) for row in found.layers]
    finite = [pair for pair in errors if np.isfinite(pair).all()]
    return {
        "method": method,
        "samples": samples.number,
        "data": data_of(samples, model),
        "tensors_changed": len(found.changed),
        "mean_layer_error": {
            "before": float(np.mean([b for b, _ in finite])) if finite else 0.0,
            "after": float(np.mean([a for _, a in finite])) if finite else 0.0,
        },
        "layers": found.layers,
    }
