"""The proof of every compile: the pruned graph is the dense one with these slots removed, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import onnx_ir as ir

from sparsecc.compilation import Compilation
from sparsecc.escaping import quoted
from sparsecc.ir.apart import Apart
from sparsecc.runtime.part_errors import part_errors, tolerances_of, unexplained
from sparsecc.runtime.partitioned import PartedRunner
from sparsecc.runtime.runner import Known
from sparsecc.shapes.dynamic_dims import input_values
from sparsecc.system import memory
from sparsecc.verify.onnx_checker import check
from sparsecc.verify.other_probes import other_feeds
from sparsecc.verify.planted import FEW, LARGE, NUMBER, plants_of
from sparsecc.verify.probes import Probes
from sparsecc.verify.surgery import Removal, proven


def prove(pruned: ir.Model, probes: Probes, removal: Removal) -> dict[str, Any]:
    """Check the pruned graph against the masked dense model, and the check against planted faults.

    InternalError where the two differ by more than rounding explains.
    """
    compilation = probes.compilation
    by_parts = compilation.dense.by_parts
    number = FEW if by_parts or compilation.dense.weights > LARGE else NUMBER
    if by_parts:
        how = _parts(PartedRunner(pruned, threads=compilation.options.threads))
    else:
        how = {"checker": check(Apart.of(pruned), compilation.dense.graph)}
    dense = [
        Known(compilation.reference, feeds, outputs)
        for feeds, outputs in zip(compilation.feeds, compilation.expected, strict=True)
    ]
    found, probes.pruned, probes.telling = proven(
        pruned,
        replace(removal, masked=removal.masked or dense),
        plants_of(removal.cuts, compilation.options.seed, number),
        compilation.narrowed,
        compilation.feeds,
        iter(()) if by_parts else other_feeds(compilation),
        partial(compilation.opened, owned=True),
        partial(compilation.in_pieces, again=True),
        by_parts,
        _unsteady(compilation),
    )
    one_size = _tried_at_one_size(compilation)
    return {
        "oracle": "masked dense model" if removal.cuts else "dense model",
        **found,
        "inputs": [{n: list(a.shape) for n, a in feeds.items()} for feeds in compilation.feeds],
        **({"one_size": one_size} if one_size else {}),
        **({"integers": compilation.integers} if compilation.integers else {}),
        **({} if compilation.plain is None else {"plain": compilation.plain}),
        **how,
    }


def _unsteady(compilation: Compilation) -> dict[str, float]:
    """The outputs that a second run of the dense model on the first inputs gives otherwise, by more than rounding, and
    by how much: random operators draw anew at each run, with a seed too, and custom ones may."""
    before, feeds = compilation.expected[0], compilation.feeds[0]
    errors = part_errors(before, compilation.reference.run(feeds))
    return unexplained(errors, tolerances_of(before))


def _tried_at_one_size(compilation: Compilation) -> list[str]:
    """The dynamic dimensions that had the same size on all probes."""
    found = []
    for value in input_values(compilation.dense.model):
        for axis, dim in enumerate(value.shape or ()):
            sizes = {feeds[value.name or ""].shape[axis] for feeds in compilation.feeds}
            if not isinstance(dim, int) and len(sizes) == 1:
                found.append(f"axis {axis} of {quoted(value.name or '')} ({sizes.pop()})")
    return found


def _parts(runner: PartedRunner) -> dict[str, Any]:
    return {"by_parts": {"parts": len(runner.parts), "weight_bytes_per_part": memory.part_bytes()}}
