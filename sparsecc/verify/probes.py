"""What a compile's results are held against: the masked dense model, the pruned graph, the dense outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from sparsecc.axes.algebra import Keep
from sparsecc.compilation import Compilation
from sparsecc.data.samples import Samples
from sparsecc.decide.passes import passes_for
from sparsecc.escaping import quoted
from sparsecc.graph.analysis import Analysis
from sparsecc.loading.models import load_ir
from sparsecc.loss.quality import told
from sparsecc.reference.layer_values import LayerValue
from sparsecc.reference.masked_channels import masked_at
from sparsecc.reference.pruned_io import Narrowed
from sparsecc.runtime.numerics import Outputs, is_quantized, worst_error
from sparsecc.runtime.partitioned import PartedRunner
from sparsecc.runtime.rounding import moved_by_rounding
from sparsecc.runtime.runner import Fed, Runs
from sparsecc.system.memory import give_back
from sparsecc.verify import stored_probes
from sparsecc.verify.built import changed_constants, require_finite, require_same, unlike_rounding
from sparsecc.verify.layers_in_pattern import require_in_built, require_patterns, require_unchanged
from sparsecc.verify.layers_in_type import losses_in_layers, moved_wrongly
from sparsecc.verify.onnx_checker import check
from sparsecc.verify.surgery import Removal

if TYPE_CHECKING:
    from sparsecc.backends.base import Backend
    from sparsecc.passes.base import PassResult, Patterned
    from sparsecc.plan import Plan

Feeds = Mapping[str, np.ndarray]
SAMPLES = 8
"""Batches of samples on which the compiled model is compared with the dense one where none are held out."""
HELD_OUT, FITTED, RANDOM = "held-out samples", "the samples it was fitted to", "random inputs"
"""What results are judged on, as reports say it."""


@dataclass(frozen=True)
class Passed:
    """What passes leave for the proof: the graph before its types changed, where every layer can be held against it;
    that before numbers were moved between its layers for the sake of types, None where none were; and those before and
    behind a pattern."""

    in_float: ir.Model | None = None
    unmoved: ir.Model | None = None
    patterned: Patterned | None = None

    def behind(self, result: PassResult) -> Passed:
        """The same behind one more pass."""
        found = replace(self, patterned=result.patterned or self.patterned)
        if result.in_float is None:
            return found
        unmoved = None if result.was_rounded else self.in_float
        return replace(found, unmoved=unmoved, in_float=result.in_float)


class Probes:
    """The comparisons of a compile, on the inputs `compilation.feeds`, each a probe."""

    def __init__(self, compilation: Compilation) -> None:
        self.compilation = compilation
        self.pruned: list[Outputs] = []
        """What the pruned graph gave for each probe, as it was proved."""
        self.telling: list[tuple[Feeds, Outputs]] = []
        """Other inputs of the dense model that show more of its outputs, and what the pruned graph gave."""
        self._artefact: tuple[Path, Any] | None = None
        self._found: Outputs = {}

    def narrow(self, ports: Narrowed) -> None:
        """From here on what the pruned graph gave lacks the outputs that went, and others have new names."""
        self.pruned = [ports.wanted(outputs) for outputs in self.pruned]
        self.telling = [(feeds, ports.wanted(outputs)) for feeds, outputs in self.telling]

    def of_removal(self, analysis: Analysis, keep: Keep, layers: Sequence[LayerValue] = ()) -> Removal:
        """The masked dense model per probe: what the pruned one must compute. Read before removal.

        The first shows the values of `layers` behind its outputs.
        """
        model, constants = masked_at(analysis, keep, len(self.compilation.feeds), [v.name for v in layers])
        runner = self.compilation.in_pieces(model)
        return Removal([Fed(runner, one) for one in constants], layers)

    def reference(self, removal: Removal) -> Iterator[tuple[Feeds, Outputs, Callable[[], float]]]:
        """Per probe: the inputs, the wanted outputs, and how far rounding of the inputs moves them.

        Without a masked model the dense one is the reference.
        """
        compilation = self.compilation
        for probe, feeds in enumerate(compilation.feeds):
            runner = removal.masked[probe] if removal.masked else compilation.reference
            wanted = runner.run(feeds) if removal.masked else compilation.expected[probe]
            yield feeds, wanted, partial(moved_by_rounding, runner, feeds, wanted)

    def of_built(
        self, backend: Backend, compiled: Path, model: ir.Model, plan: Plan, passed: Passed
    ) -> list[dict[str, Any]]:
        """What passes did, layer by layer, and what was built of it."""
        checks = [] if passed.patterned is None else [self.of_patterns(passed.patterned, plan)]
        if passed.patterned is not None and not plan.quantization:
            require_unchanged(passed.patterned, model)
        checks.append(self.of_artefact(backend, compiled, model, plan))
        if passed.in_float is not None:
            checks.append(self.of_types(passed.in_float, model, plan, passed.unmoved))
        return checks

    def of_artefact(self, backend: Backend, compiled: Path, model: ir.Model, plan: Plan) -> dict[str, Any]:
        """Load and run what was built; how close it is to the pruned graph and to the dense model."""
        compilation = self.compilation
        by_parts = compilation.dense.by_parts
        runner = self.artefact(backend, compiled)
        plain = cache(lambda: compilation.opened(model))
        checked = {"checker": check(compiled, compilation.file)} if by_parts else {}
        changed = passes_for(compilation.options) or plan.repaired or is_quantized(model) or not self.pruned
        errors, doubts = [], dict[str, float]()
        in_types = bool(plan.quantization)
        for probe, feeds in enumerate(compilation.feeds):
            feeds = compilation.narrowed.feeds(feeds)
            wanted = plain().run(feeds) if changed else self.pruned[probe]
            found = runner.run(feeds)
            self._found = self._found or found
            errors.append(worst_error(wanted, found))
            doubts |= require_same(model, plain, feeds, wanted, found, self._opened_again, in_types=in_types)
            if self.pruned:
                require_finite(self.pruned[probe], found, RANDOM, has_samples=self._has_samples)
        for other, pruned in () if in_types else self.telling:
            smaller = compilation.narrowed.feeds(other)
            right = plain().run(smaller) if changed else pruned
            doubts |= require_same(model, plain, smaller, right, runner.run(smaller), self._opened_again)
        losses = [
            f"the built model differs from the graph it was built from by {error:.2g} at output {quoted(name)}, more "
            "than rounding explains for sure"
            for name, error in doubts.items()
        ]
        losses += _constants(backend.numerics_file(compiled), model, plan)
        return {
            "runs": True,
            "artefact_relative_error": unlike_rounding(errors),
            **({"losses": losses} if losses else {}),
            **checked,
        }

    def _opened_again(self, model: ir.Model) -> Runs:
        return self.compilation.opened(model, owned=True)

    def of_types(
        self, before: ir.Model, after: ir.Model, plan: Plan, unmoved: ir.Model | None = None
    ) -> dict[str, Any]:
        """Every layer in its new type against its float form: what the types do not explain is no proof.

        Where numbers were moved between layers first, that is the form after the move, which must equal `unmoved`.
        On what the passes calibrated on, where they did: random inputs leave the ranges of 8-bit activations.
        """
        random = self.compilation.narrowed.feeds(self.compilation.feeds[0])
        feeds = self.compilation.pass_feeds[0] if self.compilation.pass_feeds else random
        number, losses = losses_in_layers(before, after, plan.quantization, feeds, self._opened_again)
        if unmoved is not None:
            losses = [*moved_wrongly(unmoved, before, feeds, self._opened_again), *losses]
        return {"layers_in_type": number, **({"losses": losses} if losses else {})}

    def of_patterns(self, found: Patterned, plan: Plan) -> dict[str, Any]:
        """Every layer in a pattern against what it was: what its method does not explain is no proof."""
        compilation = self.compilation
        opened = None if compilation.dense.by_parts else self._opened_again
        number, losses = require_patterns(found, plan.patterns, compilation.pass_feeds, opened)
        return {"layers_in_pattern": number, **({"losses": losses} if losses else {})}

    def take(self, compiled: Path, runner: Any) -> None:
        """A compiled model that is loaded already."""
        self._artefact = compiled, runner

    def artefact(self, backend: Backend, compiled: Path) -> Any:
        """The compiled model, loaded once for all checks: large ones take their time."""
        if self._artefact is None or self._artefact[0] != compiled:
            path = backend.numerics_file(compiled)
            threads = self.compilation.options.threads
            loaded = (
                PartedRunner(load_ir(path), threads=threads)
                if self.compilation.dense.by_parts
                else backend.load(path, threads=threads)
            )
            self._artefact = compiled, loaded
        return self._artefact[1]

    def close_to_dense(self, backend: Backend, compiled: Path) -> dict[str, Any]:
        """How close the compiled model's outputs are to the dense one's, on samples that nothing was fitted to.

        On those that it was fitted to where none are held out, on random inputs where there are no samples.
        """
        compilation, narrowed = self.compilation, self.compilation.narrowed
        judged, data = self._judged_on()
        if data == RANDOM:  # the dense model ran on these when it was loaded, what was verified too
            wanted: list[Outputs] = [narrowed.wanted(compilation.of_dense[0])]
            runner, feeds = self.artefact(backend, compiled), narrowed.feeds(compilation.feeds[0])
            found = [self._found or runner.run(feeds)]
        else:
            wanted, found = self.outputs(backend, compiled, judged)
        for before, after in zip(wanted, found, strict=True):
            answers = {n: a for n, a in before.items() if n not in self.compilation.caches}
            require_finite(answers, after, data, has_samples=self._has_samples)
        parts, asked = compilation.judged_parts, compilation.judged_answers
        close = told(wanted, found, parts, asked, chosen=data == HELD_OUT)
        return {**close, "data": data, "samples": judged.number}

    def outputs(
        self, backend: Backend, compiled: Path, samples: Samples
    ) -> tuple[list[Outputs], list[Outputs]]:
        """What the dense model and the compiled one give for samples, batch by batch."""
        return self.compared(self.artefact(backend, compiled), samples)

    def compared(self, runner: Any, samples: Samples) -> tuple[list[Outputs], list[Outputs]]:
        """What the dense model, and one that takes what is left of its inputs, give for samples, batch by batch."""
        narrowed, dense = self.compilation.narrowed, self.compilation.dense.runner
        wanted: list[Outputs] = [narrowed.wanted(dense.run(feeds)) for feeds in samples.batches]
        return wanted, [runner.run(narrowed.feeds(feeds)) for feeds in samples.batches]

    def keep(self, backend: Backend, compiled: Path, path: Path) -> None:
        """Write a few inputs with the outputs of the original and of the compiled model, for outsiders to check.

        The compiled model, which is as large as the original that runs then, is let go of.
        """
        compilation, narrowed = self.compilation, self.compilation.narrowed
        if compilation.dense.by_parts:
            return
        feeds = stored_probes.rounded(compilation.feeds[0])
        smaller = narrowed.feeds(feeds)
        found, self._artefact = self.artefact(backend, compiled).run(smaller), None
        give_back()
        dense = narrowed.wanted(compilation.dense.runner.run(feeds))
        stored_probes.keep(path, smaller, dense, found)

    @property
    def _has_samples(self) -> bool:
        return self.compilation.calibration is not None

    def _judged_on(self) -> tuple[Samples, str]:
        compilation = self.compilation
        if compilation.calibration is None or compilation.dense.by_parts:
            return Samples((compilation.feeds[0],), real=False), RANDOM
        if compilation.held_out.batches:
            return compilation.held_out, HELD_OUT
        return compilation.samples.first(SAMPLES), FITTED


def _constants(path: Path, model: ir.Model, plan: Plan) -> list[str]:
    """A clause for each constant that holds other numbers in the file that was built than in its graph.

    InternalError where one lost its pattern. Of what is no ONNX file nothing is known.
    """
    if path.suffix != ".onnx":
        return []
    built = load_ir(path)
    require_in_built(built, plan.patterns)
    changed = changed_constants(model, built)
    return [f"constant {quoted(name)} holds other numbers in the built model" for name in changed]


def together(verification: Mapping[str, Any], found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The proof with what later checks found; their losses are no proof."""
    losses = [loss for one in found for loss in one.get("losses", ())]
    merged = dict(verification)
    for one in found:
        merged |= one
    if losses:
        reasons = [verification.get("reason"), *losses]
        merged |= {"status": "not proved", "reason": "; ".join(r for r in reasons if r), "losses": losses}
    return merged
