"""The loss of a cut as a compile would really make it: removed, repaired, and compared on samples kept back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from sparsecc.allocators.base import Candidate
from sparsecc.allocators.joint_error import CutLosses
from sparsecc.allocators.output_error import Bench, affordable
from sparsecc.axes.algebra import Atom, Axis, Keep, atoms_of
from sparsecc.calibrate.layer_statistics import Stats
from sparsecc.calibrate.routers import mixtures_of
from sparsecc.compilation import Compilation
from sparsecc.data.samples import Samples
from sparsecc.graph.analysis import Analysis
from sparsecc.graph.rewrite import remove
from sparsecc.loss.parts import parts_of_outputs
from sparsecc.reconstruct.dense_values import DenseValues
from sparsecc.reconstruct.stage import kept_values, repair_from
from sparsecc.reference.pruned_io import Narrowed

PLANS = 4
"""About how many cuts an allocator compares before it takes one."""
MOST = 256
"""Samples to a rehearsal."""
_RUNS = 12 * PLANS
"""Runs of the dense model that the rehearsals take, in the time of one: both models walked, moments, solves."""


@dataclass(frozen=True)
class Stage:
    """What a rehearsal needs besides the plan: the compilation, the samples, those kept back, how the compile repairs,
    and the same model analysed once more, which removal spends.
    """

    compilation: Compilation
    seen: Samples
    held_out: Samples
    method: str
    again: Callable[[], Analysis]

    @staticmethod
    def of(
        compilation: Compilation, analysis: Analysis, method: str, again: Callable[[], Analysis]
    ) -> Stage | None:
        """With as many samples as time allows; None where these are too few, or none are held out."""
        samples, held_out = compilation.samples, compilation.held_out
        seen = affordable(analysis, samples, _RUNS, MOST)
        if seen is None or not samples.real or not held_out.batches:
            return None
        judges = held_out.first(max(1, seen.number // 4))
        return Stage(compilation.within(compilation.scratch.rehearsal), seen, judges, method, again)


class Rehearsal(CutLosses):
    """Removes slots from the model analysed anew, repairs what is left, and compares outputs on other samples."""

    def __init__(
        self, analysis: Analysis, candidates: Sequence[Candidate], stats: Stats, stage: Stage
    ) -> None:
        entry = f"rehearsal-{stage.method}-{stage.seen.number}"
        super().__init__(candidates, stats, entry, PLANS, stage.compilation.progress)
        self._analysis = analysis
        self._stage = stage
        held, name = stage.compilation.held, f"{stats.digest}-{entry}"
        if name not in held:
            held.clear()
            held[name] = _Dense.of(analysis, stage)
        self._dense: _Dense = held[name]

    def _loss(self, cut: Keep, share: float) -> float:
        stage, twin = self._stage, self._stage.again()
        found = counterparts(self._analysis, twin)
        if not found.keys() >= cut.keys():
            return float("inf")
        keep = {found[atom]: slots for atom, slots in cut.items()}
        kept, smaller = kept_values(twin, keep), Narrowed.of(twin, keep)
        remove(twin, keep)
        mixtures, done = mixtures_of(twin), min(self.runs, PLANS)
        with stage.compilation.part((done - 1) / PLANS, done / PLANS):
            repair_from(
                stage.compilation,
                self._dense.model,
                twin.model,
                kept,
                stage.seen,
                stage.method,
                mixtures,
                self._dense.values,
            )
        return self._dense.bench.moved(twin.model, share, smaller)


@dataclass(frozen=True)
class _Dense:
    """The dense model, which no stage edits: its values on the samples seen, its outputs on those kept back.

    Rehearsals at all ratios share them.
    """

    model: ir.Model
    values: DenseValues
    bench: Bench

    @staticmethod
    def of(analysis: Analysis, stage: Stage) -> _Dense:
        model, scratch = analysis.model.clone(), stage.compilation.scratch.bench
        threads, parts = stage.compilation.options.threads, parts_of_outputs(analysis)
        return _Dense(model, DenseValues(), Bench(model, stage.held_out, scratch, threads, parts))


def counterparts(analysis: Analysis, twin: Analysis) -> dict[Atom, Atom]:
    """The atoms of an analysis in another of the same model: those of the same size at the same places."""
    found: dict[Atom, Atom] = {}
    others = dict(_places(twin))
    for place, axes in _places(analysis):
        for axis, other in zip(axes, others.get(place, []), strict=False):
            pairs = zip(atoms_of(axis), atoms_of(other), strict=False)
            found.update((ours, theirs) for ours, theirs in pairs if ours.size == theirs.size)
    return found


def _places(analysis: Analysis) -> Iterator[tuple[object, list[Axis]]]:
    """Values, and uses of weights, by names, with their axes."""
    for value, axes in analysis.record.axes.items():
        yield value.name, axes
    for (node, operand), axes in analysis.record.uses.items():
        yield (node.outputs[0].name, operand), axes
