"""The proof of every compile: the pruned graph is the dense one with these slots removed, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx_ir as ir

from sparsecc.errors import InternalError
from sparsecc.runtime.numerics import tolerance_of, worst_error
from sparsecc.runtime.partitioned import PartedRunner
from sparsecc.runtime.rounding import AMPLIFIED
from sparsecc.system import memory
from sparsecc.verify.onnx_checker import check
from sparsecc.verify.probes import Masked, Probes


def prove(pruned: ir.Model, probes: Probes, proof: Sequence[Masked]) -> dict[str, Any]:
    """Check the pruned graph against the masked dense model. InternalError where they differ."""
    compilation = probes.compilation
    path = compilation.scratch.pruned
    runner = compilation.opened(pruned, path)
    how = (
        _parts(runner)
        if isinstance(runner, PartedRunner)
        else {"checker": check(path, compilation.dense.path)}
    )
    worst, floor = 0.0, None
    for feeds, wanted, moved in probes.reference(proof):
        found = runner.run(compilation.narrowed.feeds(feeds))
        probes.pruned.append(found)
        error = worst_error(compilation.narrowed.wanted(wanted), found)
        worst = max(worst, error)
        if error > tolerance_of(wanted):
            floor = max(floor or 0.0, moved())
            if error > AMPLIFIED * floor:
                raise InternalError(
                    f"the pruned model differs from the masked dense one by {error:.2g}, "
                    f"rounding explains {floor:.2g}"
                )
    return {
        "oracle": "masked dense model" if proof else "dense model",
        "max_relative_error": worst,
        "rounding_floor": floor,
        "inputs": [{n: list(a.shape) for n, a in feeds.items()} for feeds in compilation.feeds],
        **({"integers": compilation.integers} if compilation.integers else {}),
        **how,
    }


def _parts(runner: PartedRunner) -> dict[str, Any]:
    return {"by_parts": {"parts": len(runner.parts), "weight_bytes_per_part": memory.part_bytes()}}
