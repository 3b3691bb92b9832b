"""The loss of a cut as a compile would really make it: removed, repaired, and compared on samples kept back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sparsecc.allocators.base import Candidate
from sparsecc.allocators.joint_error import CutLosses
from sparsecc.allocators.output_error import Bench, affordable, takes_any_batch
from sparsecc.axes.algebra import Atom, Axis, Keep, atoms_of
from sparsecc.calibrate.layer_statistics import Stats
from sparsecc.calibrate.routers import mixtures_of
from sparsecc.data.samples import Feeds, Samples
from sparsecc.graph.analysis import Analysis
from sparsecc.graph.rewrite import remove
from sparsecc.loss.parts import parts_of_outputs
from sparsecc.reconstruct.layerwise import Settings
from sparsecc.reconstruct.stage import kept_values, repair_from

PLANS = 4
"""About how many cuts an allocator compares before it takes one."""
MOST = 256
"""Samples to a rehearsal."""
_RUNS = 12 * PLANS
"""Runs of the dense model that the rehearsals take, in the time of one: both models walked, moments, solves."""
_EVERY = 4
"""One sample of so many is kept back."""


@dataclass(frozen=True)
class Stage:
    """What a rehearsal needs besides the plan: the samples, those kept back, a folder, how the compile repairs, and
    the same model analysed once more, which removal spends.
    """

    seen: Samples
    held_out: Samples
    scratch: Path
    settings: Settings
    again: Callable[[], Analysis]

    @staticmethod
    def of(
        analysis: Analysis,
        samples: Samples,
        scratch: Path,
        settings: Settings,
        again: Callable[[], Analysis],
    ) -> Stage | None:
        """With as many samples as time allows; None where these are too few to be divided."""
        chosen = affordable(analysis, samples, _RUNS, MOST)
        if chosen is None or not samples.real:
            return None
        seen, held_out = divided(chosen, whole_batches=not takes_any_batch(analysis.model))
        if not seen.batches or not held_out.batches:
            return None
        return Stage(seen, held_out, scratch / "rehearsal", settings, again)


class Rehearsal(CutLosses):
    """Removes slots from the model analysed anew, repairs what is left, and compares outputs on other samples."""

    def __init__(
        self, analysis: Analysis, candidates: Sequence[Candidate], stats: Stats, stage: Stage
    ) -> None:
        entry = f"rehearsal-{stage.settings.method}-{stage.seen.number}"
        super().__init__(candidates, stats, entry, PLANS, stage.settings.progress)
        self._analysis = analysis
        self._stage = stage
        self._bench = Bench(
            analysis.model, stage.held_out, stage.scratch, stage.settings.threads, parts_of_outputs(analysis)
        )

    def _loss(self, cut: Keep, share: float) -> float:
        stage, twin = self._stage, self._stage.again()
        found = counterparts(self._analysis, twin)
        if not found.keys() >= cut.keys():
            return float("inf")
        keep = {found[atom]: slots for atom, slots in cut.items()}
        kept = kept_values(twin, keep)
        remove(twin, keep)
        mixtures = mixtures_of(twin)
        repair_from(
            self._analysis.model, twin.model, kept, stage.seen, stage.scratch, stage.settings, mixtures
        )
        return self._bench.moved(twin.model, share)


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


def divided(samples: Samples, *, whole_batches: bool) -> tuple[Samples, Samples]:
    """Samples to repair on, and every fourth for comparison; of batches of a fixed size, every fourth batch."""
    seen: list[Feeds] = []
    held_out: list[Feeds] = []
    passed = 0
    for batch in samples.batches:
        lengths = {len(array) if array.ndim else 1 for array in batch.values()}
        number = 1 if whole_batches or len(lengths) > 1 else max(lengths)
        back = np.arange(passed, passed + number) % _EVERY == _EVERY - 1
        passed += number
        for part, chosen in ((seen, ~back), (held_out, back)):
            if chosen.all():
                part.append(batch)
            elif chosen.any():
                part.append({name: array[chosen] for name, array in batch.items()})
    return Samples(tuple(seen), samples.real), Samples(tuple(held_out), samples.real)
