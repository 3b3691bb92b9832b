"""A combination timed against its parts: the pruned model alone, and the dense model with only its types changed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from sparsecc.decide.passes import passes_for
from sparsecc.errors import InputError
from sparsecc.measure.interleave import Budget
from sparsecc.measure.pair import measure_pair
from sparsecc.passes.base import PassContext, Skip
from sparsecc.passes.quantize import Quantize
from sparsecc.plan import Plan
from sparsecc.targets import target_named

if TYPE_CHECKING:
    from sparsecc.tasks.compile import Job
    from sparsecc.verify.prove import Probes

_WEIGHTS = 1 << 30
"""Bytes of a dense model that is still quantized once more to be timed."""


def against_parts(job: Job, compiled: Path, probes: Probes) -> dict[str, Any]:
    """{"parts": {"pruned": ratio, "quantized": ratio}} of a compile that prunes and changes types; {} of others."""
    asked = job.options
    if not asked.ratio or not (asked.quantize or asked.sparsity):
        return {}
    found = {}
    for part, path in _parts(job, probes):
        narrow = part == "pruned" and probes.small_feeds is not None
        told = measure_pair(
            path, compiled, probes.small_feeds if narrow and probes.small_feeds else probes.feeds[0],
            device=asked.device, threads=asked.threads, seed=asked.seed, rounds=3,
            budget=Budget(pairs=60, seconds=4.0, warmup_seconds=0.3), after_feeds=probes.small_feeds,
        )  # fmt: skip
        found[part] = told.ratio().to_json()
    return {"parts": found} if found else {}


def _parts(job: Job, probes: Probes) -> Iterator[tuple[str, Path]]:
    pruned = job.scratch / "pruned" / "model.onnx"
    if pruned.is_file():
        yield "pruned", pruned
    types = job.options.quantize and not job.options.mixes_types
    if types and not job.options.sparsity and probes.dense.stat().st_size < _WEIGHTS:
        quantized = quantized_part(job, probes)
        if quantized is not None:
            yield "quantized", quantized


def quantized_part(job: Job, probes: Probes) -> Path | None:
    """The dense model in the asked type. Its ranges come from one probe: they do not change which kernels run."""
    folder = job.scratch / "quantized"
    folder.mkdir(exist_ok=True)
    model = ir.load(probes.dense)
    context = PassContext(target_named(job.options.target), folder, probes.feeds[:1], job.options.seed)
    try:
        for one in passes_for(job.options):
            if isinstance(one, Quantize):
                one = replace(one, method="minmax", algorithm="rtn", max_drop=None, correct_bias=False)
            one.run(model, Plan({}), context)
    except InputError as e:
        job.skipped.append(("measure", Skip(job.model.name, f"not timed against the quantized model: {e}")))
        return None
    ir.save(model, folder / "model.onnx")
    return folder / "model.onnx"
