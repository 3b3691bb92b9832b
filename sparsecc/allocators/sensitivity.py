"""Measured loss curves: how far the outputs move when one group alone is cut."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from sparsecc.allocators.base import Candidate
from sparsecc.allocators.output_error import Bench
from sparsecc.axes.algebra import Atom
from sparsecc.calibrate.layer_statistics import Stats
from sparsecc.data.samples import Samples
from sparsecc.graph.analysis import Analysis
from sparsecc.reference.masked_channels import masked
from sparsecc.system.code_hash import code_hash

LEVELS = (0.75, 0.5, 0.3)
"""Shares of a group at which its curve is measured, besides its floor."""


def known_or_measured(
    analysis: Analysis,
    candidates: Sequence[Candidate],
    stats: Stats,
    samples: Samples,
    scratch: Path,
    threads: int,
) -> dict[Atom, dict[int, float]] | None:
    """As `measure`; taken from the shelf where the same slots of the same model were tried before."""
    entry = f"{stats.digest}-curves-{code_hash(__name__).hex()[:16]}-{_tried(candidates)}"
    file = stats.shelf.find(entry)
    if file is None:
        found = measure(analysis, candidates, samples, scratch, threads)
        rows = None if found is None else [sorted(found[c.atom].items()) for c in candidates]
        stats.shelf.path(entry).write_text(json.dumps(rows))
        stats.shelf.keep(entry)
        return found
    rows = json.loads(file.read_text())
    if rows is None:
        return None
    return {c.atom: {int(n): float(v) for n, v in row} for c, row in zip(candidates, rows, strict=True)}


def _tried(candidates: Sequence[Candidate]) -> str:
    """The hash of the slots that are left at every level of every curve."""
    digest = hashlib.sha256()
    for candidate in candidates:
        for count in levels_of(candidate):
            digest.update(repr((candidate.size, count)).encode() + candidate.best(count).tobytes())
    return digest.hexdigest()[:32]


def measure(
    analysis: Analysis, candidates: Sequence[Candidate], samples: Samples, scratch: Path, threads: int
) -> dict[Atom, dict[int, float]] | None:
    """Count kept -> relative squared error of the outputs, per group; None where that would take too long."""
    levels = {c.atom: levels_of(c) for c in candidates}
    runs = sum(len(counts) for counts in levels.values()) + 1
    bench = Bench.for_runs(analysis, samples, runs, scratch, threads)
    if bench is None:
        return None

    def cut(c: Candidate, count: int) -> ir.Model:
        return masked(analysis, {c.atom: c.best(count)})

    curves = {c.atom: {c.size: 0.0} for c in candidates}
    tried = [c for c in candidates if levels[c.atom]]
    for c in sorted(tried, key=lambda c: bench.start_of(cut(c, levels[c.atom][0]))):
        losses = {n: bench.branched(cut(c, n)) for n in levels[c.atom]}
        curves[c.atom] = monotone({c.size: 0.0, **losses})
    return curves


def levels_of(candidate: Candidate) -> list[int]:
    """The counts at which a curve is measured."""
    allowed = candidate.counts()[:-1]
    if not allowed:
        return []
    near = {min(allowed, key=lambda n: (abs(n - share * candidate.size), n)) for share in LEVELS}
    return sorted(near | {allowed[0]}, reverse=True)


def monotone(curve: Mapping[int, float]) -> dict[int, float]:
    """Fewer slots never lose less: noise in a measurement must not pay."""
    counts = sorted(curve, reverse=True)
    values = np.maximum.accumulate([curve[n] for n in counts])
    return {n: float(v) for n, v in zip(counts, values, strict=True)}
