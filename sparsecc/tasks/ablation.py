"""A combination timed against its parts: the pruned model alone, and the dense model with only its types changed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from sparsecc.compilation import Compilation
from sparsecc.decide.passes import passes_for
from sparsecc.errors import InputError
from sparsecc.measure.interleave import Budget
from sparsecc.measure.pair import measure_pair
from sparsecc.options import CompileOptions
from sparsecc.passes.quantize import Quantize
from sparsecc.plan import Plan
from sparsecc.remarks import Remark

_WEIGHTS = 1 << 30
"""Bytes of a dense model that is still quantized once more to be timed."""


def against_parts(compilation: Compilation, compiled: Path) -> dict[str, Any]:
    """{"parts": {"pruned": ratio, "quantized": ratio}} of a compile that prunes and changes types; {} of others."""
    asked, small = compilation.options, compilation.narrow(compilation.timed)
    if not has_parts(asked):
        return {}
    found = {}
    for part, path in _parts(compilation):
        told = measure_pair(
            path, compiled, small if small is not None and part == "pruned" else compilation.timed,
            device=asked.device, threads=asked.threads, seed=asked.seed, rounds=3,
            budget=Budget(pairs=60, seconds=4.0, warmup_seconds=0.3), after_feeds=small,
        )  # fmt: skip
        found[part] = told.ratio().to_json()
    return {"parts": found} if found else {}


def has_parts(options: CompileOptions) -> bool:
    """Whether a compile prunes and changes types."""
    return bool(options.ratio and (options.quantize or options.sparsity))


def _parts(compilation: Compilation) -> Iterator[tuple[str, Path]]:
    options, scratch = compilation.options, compilation.scratch
    if scratch.pruned.is_file():
        yield "pruned", scratch.pruned
    types = options.quantize and not options.mixes_types
    if types and not options.sparsity and compilation.dense.bytes < _WEIGHTS:
        quantized = quantized_part(compilation)
        if quantized is not None:
            yield "quantized", quantized


def quantized_part(compilation: Compilation) -> Path | None:
    """The dense model in the asked type. Its ranges come from one probe: they do not change which kernels run."""
    path, options = compilation.scratch.quantized, compilation.options.settled(compilation.measured_options)
    path.parent.mkdir(exist_ok=True)
    assert compilation.dense.graph is not None
    model = compilation.dense.graph.model()
    alone = compilation.again(options).within(path.parent)
    alone.pass_feeds = compilation.feeds[:1]
    try:
        for one in passes_for(options):
            if isinstance(one, Quantize):
                one = replace(one, method="minmax", algorithm="rtn", max_drop=None, correct_bias=False)
            one.run(model, Plan({}), alone)
    except InputError as e:
        reason = f"not timed against the quantized model: {e}"
        compilation.remarks.append(("measure", Remark(compilation.file.name, reason)))
        return None
    ir.save(model, path)
    return path
