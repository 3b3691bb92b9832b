"""Measured loss curves: how far the outputs move when one group alone is cut, and its readers refitted."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from sparsecc.allocators.base import Candidate
from sparsecc.axes import Atom
from sparsecc.backends.onnxruntime_session import OrtRunner, open_session, session_options
from sparsecc.calibrate.consumers import Consumer, consumer_of
from sparsecc.calibrate.samples import Feeds, Samples
from sparsecc.calibrate.stats import Layer, Stats
from sparsecc.cost import macs_model
from sparsecc.graph.analysis import Analysis
from sparsecc.verify.oracle import masked
from sparsecc.verify.prove import write

LEVELS = (0.75, 0.5, 0.3)
"""Shares of a group at which its curve is measured, besides its floor."""
WORK = 1e13
"""Multiply-accumulates that all curves together may take: some minutes on one core."""
FEWEST, MOST = 8, 128
_DAMPING = 0.01


def known_or_measured(
    analysis: Analysis,
    candidates: Sequence[Candidate],
    stats: Stats,
    samples: Samples,
    scratch: Path,
    threads: int,
) -> dict[Atom, dict[int, float]] | None:
    """As `measure`; taken from the shelf where the same slots of the same model were tried before."""
    entry = f"{stats.digest}-curves-{_tried(candidates)}"
    file = stats.shelf.find(entry)
    if file is None:
        found = measure(analysis, candidates, stats, samples, scratch, threads)
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
    analysis: Analysis,
    candidates: Sequence[Candidate],
    stats: Stats,
    samples: Samples,
    scratch: Path,
    threads: int,
) -> dict[Atom, dict[int, float]] | None:
    """Count kept -> relative squared error of the outputs, per group; None where that would take too long."""
    levels = {c.atom: levels_of(c) for c in candidates}
    runs = sum(len(counts) for counts in levels.values()) + 1
    per_sample = macs_model(analysis).total({}) / _batch_of(analysis)
    number = int(min(MOST, WORK / max(runs * per_sample, 1.0)))
    if number < FEWEST:
        return None
    few = samples.first(number)
    bench = _Bench(few.batches, scratch, threads)
    wanted = bench.outputs(analysis.model)
    curves = {}
    for candidate in candidates:
        curve = {candidate.size: 0.0}
        for count in levels[candidate.atom]:
            keep = {candidate.atom: candidate.best(count)}
            model = masked(analysis, keep)
            refit_readers(model, stats, candidate.atom, keep[candidate.atom])
            curve[count] = divergence(wanted, bench.outputs(model))
        curves[candidate.atom] = monotone(curve)
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


def divergence(wanted: Sequence[Feeds], found: Sequence[Feeds]) -> float:
    """Squared error relative to variance, averaged over the float outputs; infinite where NaN appear."""
    errors = []
    for name, first in wanted[0].items():
        if first.dtype.kind != "f":
            continue
        a = np.concatenate([o[name].astype(np.float64).ravel() for o in wanted])
        b = np.concatenate([o[name].astype(np.float64).ravel() for o in found])
        if a.shape != b.shape or not np.isfinite(b).all():
            return float("inf")
        errors.append(float(np.mean(np.square(a - b))) / max(float(a.var()), 1e-12))
    return float(np.mean(errors)) if errors else 0.0


def refit_readers(model: ir.Model, stats: Stats, atom: Atom, keep: np.ndarray) -> None:
    """In a masked dense model, let the layers that read a cut atom make up for what is gone."""
    nodes = {node.name: node for node in model.graph}
    for layer in stats.of(atom):
        twin = consumer_of(nodes[layer.consumer.name])
        if isinstance(twin, Consumer):
            twin.store(refitted(layer, layer.owners(atom), keep))


def refitted(layer: Layer, owners: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """The layer's dense-shaped matrix with removed columns zero and the others refitted."""
    weight = layer.consumer.matrix()
    result = np.zeros_like(weight)
    for block in layer.blocks():
        own, covariance = owners[block.group, block.columns], block.covariance.astype(np.float64)
        stays = (own < 0) | keep[np.maximum(own, 0)]
        inside = covariance[np.ix_(stays, stays)]
        diagonal = np.einsum("kk->k", inside)
        diagonal += _DAMPING * (float(diagonal.mean()) if diagonal.size and diagonal.mean() > 0 else 1.0)
        change = np.linalg.solve(inside, covariance[np.ix_(~stays, stays)].T).T
        part = weight[block.group][:, block.columns]
        result[block.group][:, block.columns][:, stays] = part[:, stays] + part[:, ~stays] @ change
    return result


class _Bench:
    """Runs whole models over the same samples."""

    def __init__(self, batches: Sequence[Feeds], scratch: Path, threads: int) -> None:
        self.batches = batches
        self.file = scratch / "curve" / "model.onnx"
        self.options = session_options(threads=threads, level="basic")

    def outputs(self, model: ir.Model) -> list[Feeds]:
        runner = OrtRunner(open_session(write(model, self.file), self.options), "calibration")
        return [runner.run(feeds) for feeds in self.batches]


def _batch_of(analysis: Analysis) -> int:
    """How many samples the cost model's input sizes hold."""
    shape = next(iter(analysis.shapes.inputs[0].values()), (1,))
    return max(1, shape[0]) if shape else 1
