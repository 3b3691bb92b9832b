"""Measured loss curves: how far the outputs move when one group alone is cut."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence

import numpy as np

from sparsecc.allocators.base import Candidate
from sparsecc.allocators.output_error import Bench
from sparsecc.axes.algebra import Atom, atoms_of
from sparsecc.axes.sizes import at
from sparsecc.calibrate.layer_statistics import Stats
from sparsecc.compilation import Compilation
from sparsecc.graph.analysis import Analysis
from sparsecc.reference.masked_channels import masked
from sparsecc.system.code_hash import code_hash

LEVELS = (0.75, 0.5, 0.3)
"""Shares of a group at which its curve is measured, besides its floor."""
WORK = 1e12
"""Multiply-accumulates that all curves together take where that leaves samples enough: half a minute on one core."""


def known_or_measured(
    analysis: Analysis,
    candidates: Sequence[Candidate],
    stats: Stats,
    compilation: Compilation,
) -> dict[Atom, dict[int, float]] | None:
    """As `measure`; taken from the shelf where the same slots of the same model were tried before."""
    entry = f"{stats.digest}-curves-{code_hash(__name__).hex()[:16]}-{_tried(candidates)}"
    file = stats.shelf.find(entry)
    if file is None:
        found = measure(analysis, candidates, compilation)
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
    analysis: Analysis, candidates: Sequence[Candidate], compilation: Compilation
) -> dict[Atom, dict[int, float]] | None:
    """Count kept -> relative squared error of the outputs, per group; None where that would take too long."""
    levels = {c.atom: levels_of(c) for c in candidates}
    starts = {c.atom: _start(analysis, c.atom) for c in candidates}
    shares = _shares_behind(analysis)
    runs = 1 + sum(len(counts) * shares[starts[atom]] for atom, counts in levels.items())
    scratch, threads = compilation.scratch.bench, compilation.options.threads
    bench = Bench.for_runs(analysis, compilation.samples, runs, scratch, threads, WORK)
    if bench is None:
        return None
    curves = {c.atom: {c.size: 0.0} for c in candidates}
    tried = sorted((c for c in candidates if levels[c.atom]), key=lambda c: starts[c.atom])
    done = 1.0
    for number, c in enumerate(tried):
        compilation.progress(f"loss curve {number + 1} of {len(tried)}", done / runs)
        cuts = [masked(analysis, {c.atom: c.best(n)}) for n in levels[c.atom]]
        losses = dict(zip(levels[c.atom], bench.branched(cuts), strict=True))
        curves[c.atom] = monotone({c.size: 0.0, **losses})
        done += len(cuts) * shares[starts[c.atom]]
    return curves


def _start(analysis: Analysis, atom: Atom) -> int:
    """The place of the first node that a cut of the atom changes."""
    place = {node: i for i, node in enumerate(analysis.model.graph)}
    cut = (
        place.get(r.node, 0)
        for r in analysis.record.reductions
        if any(atom in atoms_of(axis) for axis in analysis.record.reduced(r))
    )
    return min(cut, default=len(place))


def _shares_behind(analysis: Analysis) -> list[float]:
    """The share of the model's multiply-accumulates from each node on, and 0 at the end."""
    macs = [
        sum(
            float(np.prod([at(axis.size, 0) for axis in axes])) for axes in analysis.record.macs.get(node, ())
        )
        for node in analysis.model.graph
    ]
    behind = np.cumsum([0.0, *macs[::-1]])[::-1]
    return [float(share) for share in behind / max(behind[0], 1.0)]


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
