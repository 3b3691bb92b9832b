"""The loss of cutting many groups at once, their readers refitted: what sums of single losses only estimate."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from sparsecc.allocators.base import Candidate
from sparsecc.allocators.output_error import Bench
from sparsecc.axes.algebra import Atom, Keep, atoms_of
from sparsecc.calibrate import positive_definite
from sparsecc.calibrate.layer_statistics import LayerStatistics, Stats
from sparsecc.graph.analysis import Analysis
from sparsecc.reference.masked_channels import masked
from sparsecc.system.code_hash import code_hash

RUNS = 400
"""About how many cuts an allocator tries."""
_HELD = 256 << 20
"""Bytes of refitted weights held for cuts to come."""
_DAMPING = 0.01


class CutLosses:
    """Losses of cuts that are really tried, each once. What was tried is known afterwards, to later compiles too.

    `entry` names the kind of trial on the shelf, `most` is about how many are made.
    """

    def __init__(
        self,
        candidates: Sequence[Candidate],
        stats: Stats,
        entry: str,
        most: int,
        progress: Callable[[str, float], None],
    ) -> None:
        self._candidates = candidates
        self._stats = stats
        self._entry = f"{stats.digest}-{code_hash(__name__).hex()[:16]}-{entry}"
        self._most = most
        self._progress = progress
        file = stats.shelf.find(self._entry)
        self._known: dict[str, float] = {} if file is None else json.loads(file.read_text())
        self.runs = 0

    def __call__(self, counts: Mapping[Atom, int], share: float = 1.0) -> float:
        """The relative squared error of the outputs when every candidate keeps its best `counts` slots."""
        cut = self._cut(counts)
        name = _name(cut, share)
        if name not in self._known:
            self.runs += 1
            self._progress(f"try cut {self.runs}", min((self.runs - 1) / self._most, 1.0))
            self._known[name] = self._loss(cut, share)
        return self._known[name]

    def tried(self, counts: Mapping[Atom, int]) -> float | None:
        """What a cut lost that was tried; None of others."""
        return self._known.get(_name(self._cut(counts), 1.0))

    def _cut(self, counts: Mapping[Atom, int]) -> Keep:
        return {c.atom: c.best(counts[c.atom]) for c in self._candidates}

    def keep(self) -> None:
        """Leave what was tried to later compiles."""
        self._stats.shelf.path(self._entry).write_text(json.dumps(self._known))
        self._stats.shelf.keep(self._entry)

    def _loss(self, cut: Keep, share: float) -> float:
        raise NotImplementedError


def _name(cut: Keep, share: float) -> str:
    return hashlib.sha256(b"".join(slots.tobytes() for slots in cut.values())).hexdigest()[:24] + f"@{share}"


class Joint(CutLosses):
    """Runs the cut dense model on samples, the readers of what is gone refitted each for itself."""

    def __init__(
        self,
        analysis: Analysis,
        candidates: Sequence[Candidate],
        stats: Stats,
        bench: Bench,
        progress: Callable[[str, float], None],
    ) -> None:
        super().__init__(candidates, stats, "joint", RUNS, progress)
        self._analysis = analysis
        self._bench = bench
        self._refits: dict[tuple[str, bytes], np.ndarray] = {}

    def _loss(self, cut: Keep, share: float) -> float:
        model = masked(self._analysis, cut)
        self._refit(model, cut)
        return self._bench.moved(model, share)

    def _refit(self, model: ir.Model, cut: Keep) -> None:
        """In a masked dense model, let the layers that read cut groups make up for what is gone."""
        for layer in self._stats.layers.values():
            stays = left_of(layer, cut)
            if not layer.mixes or stays.all():
                continue
            key = (layer.consumer.name, np.packbits(stays).tobytes())
            if key not in self._refits:
                if sum(array.nbytes for array in self._refits.values()) > _HELD:
                    self._refits.clear()
                self._refits[key] = refitted(layer, stays).astype(np.float32)
            weight = model.graph.initializers[layer.consumer.weight.name or ""]
            replace(layer.consumer, weight=weight).store(self._refits[key])


def left_of(layer: LayerStatistics, cut: Keep) -> np.ndarray:
    """Which columns of a layer are left: (groups, columns)."""
    stays = np.ones(layer.mean.shape, dtype=bool)
    for atom in atoms_of(layer.axis):
        if atom in cut:
            owners = layer.owners(atom)
            stays &= (owners < 0) | cut[atom][np.maximum(owners, 0)]
    return stays


def refitted(layer: LayerStatistics, stays: np.ndarray) -> np.ndarray:
    """The layer's dense-shaped matrix with removed columns zero and the others refitted."""
    weight = layer.consumer.matrices()
    result = np.zeros_like(weight)
    for block in layer.blocks():
        left, covariance = stays[block.group, block.columns], block.covariance.astype(np.float64)
        inside = covariance[np.ix_(left, left)]
        diagonal = np.einsum("kk->k", inside)
        diagonal += _DAMPING * (float(diagonal.mean()) if diagonal.size and diagonal.mean() > 0 else 1.0)
        change = positive_definite.solved(inside, covariance[np.ix_(left, ~left)]).T
        part = weight[block.group][:, block.columns]
        result[block.group][:, block.columns][:, left] = part[:, left] + part[:, ~left] @ change
    return result
