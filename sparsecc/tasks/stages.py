"""The stages of a compile, top to bottom: STAGES is the one place where their order stands."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from sparsecc.backends import backend_named
from sparsecc.backends.base import Artefact, Backend
from sparsecc.calibrate.routers import mixtures_of
from sparsecc.compilation import Compilation
from sparsecc.decide.dead import bury
from sparsecc.decide.decision import Decision, decide
from sparsecc.decide.layers import shorten
from sparsecc.decide.passes import passes_for
from sparsecc.decide.tokens import thin
from sparsecc.errors import InputError, InternalError, RuntimeRefusalError
from sparsecc.escaping import quoted
from sparsecc.graph.analysis import Analysis
from sparsecc.graph.ports import close_ports
from sparsecc.graph.rewrite import remove
from sparsecc.ir.save import write
from sparsecc.ir.switches import readied
from sparsecc.ir.versions import at_versions
from sparsecc.loading.models import load_ir
from sparsecc.loading.normalise import CLEARED, FIXED, GUARDED, UNBIASED, normalise
from sparsecc.loading.skip_norms import join_skip_norms, split_skip_norms
from sparsecc.passes.last_logits import LastLogits, head_of
from sparsecc.reconstruct.distillation import distil
from sparsecc.reconstruct.stage import data_of, facts_of, kept_values, left_alone, method_for, run_repair
from sparsecc.reference.layer_values import layer_values
from sparsecc.reference.pruned_io import Narrowed
from sparsecc.system import memory
from sparsecc.tasks import siblings
from sparsecc.tasks.ablation import has_parts
from sparsecc.tasks.chain import require_whole
from sparsecc.tasks.measure import measure as measured
from sparsecc.verify import evaluate
from sparsecc.verify.probes import Passed, Probes, together
from sparsecc.verify.prove import prove
from sparsecc.verify.surgery import Removal


@dataclass
class Work:
    """What the stages of a compile hand on: every field is set by the stage that it names, and read by later ones."""

    compilation: Compilation
    folder: Path = Path()
    """Where `build` writes; a dry run has none."""
    analysis: Analysis = field(init=False)
    """load: the dense model; choose: without layers and tokens that go. From `prune` on only its model is valid."""
    probes: Probes = field(init=False)
    """load: what results are held against."""
    score: float | None = field(init=False)
    """evaluate the original: the user's metric of it, None without one."""
    decision: Decision = field(init=False)
    """choose: what stays. Later stages write into its plan what they changed."""
    removal: Removal = field(default_factory=Removal)
    """mask: the dense model with the slots masked that go, none where none go; prune: what was cut."""
    verification: dict[str, Any] = field(init=False)
    """prove, verify: the report's `verification`."""
    passed: Passed = field(default_factory=Passed)
    """passes: the graphs before them, where layers can be held against these."""
    artefact: Artefact = field(init=False)
    """build: what the backend wrote into `folder`."""
    measured: dict[str, Any] = field(init=False)
    """measure: figures of the dense and of the compiled model; cross-fit and next steps add theirs."""
    accuracy: dict[str, Any] | None = field(init=False)
    """evaluate: the user's metric before and after, None without one."""

    @property
    def backend(self) -> Backend:
        return backend_named(self.compilation.target.backend)

    @property
    def compiled(self) -> Path:
        """The artefact's main file."""
        return self.folder / self.artefact.main


@dataclass(frozen=True)
class Stage:
    """A step of a compile. `share` of the whole is done when it begins; one that only `checks` makes nothing of the
    compiled model, and is left out where that alone is wanted."""

    name: str
    share: float
    run: Callable[[Work], None]
    checks: bool = False
    ours: bool = False
    """Runs nothing but what we made, on inputs that the user's file runs on: what does not run there is our fault."""


def load(work: Work) -> None:
    """Load, normalise and analyse the input, at input sizes it really runs at."""
    compilation = work.compilation
    has_begun = compilation.has_begun
    work.analysis = compilation.analysed(loaded(compilation)) if has_begun else begin(compilation)
    work.probes = Probes(compilation)


def score_original(work: Work) -> None:
    """The user's metric of the dense model, before any long work: what is wrong with a metric is said then."""
    work.score = evaluate.score_of_dense(work.compilation)


def choose(work: Work) -> None:
    """What goes: whole layers, then tokens, then channels of what is left, dead ones first."""
    analysis, depth = thin(work.compilation, *shorten(work.compilation, work.analysis))
    analysis, depth = bury(work.compilation, analysis, depth)
    work.analysis, work.decision = analysis, decide(work.compilation, analysis, depth)
    require_whole(work.compilation)
    options, method = work.compilation.options, work.decision.choice.method
    for name in ("criterion", "allocator"):
        if getattr(options, name) == "auto" and name in method:
            work.compilation.remark(f"--{name} auto is {method[name]}")


def mask(work: Work) -> None:
    """What the pruned model must compute."""
    keep, analysis = work.decision.choice.keep, work.analysis
    if keep or readied(analysis.model):
        layers = [] if work.compilation.dense.by_parts else layer_values(analysis, keep)
        work.removal = work.probes.of_removal(analysis, keep, layers)


def prune(work: Work) -> None:
    """Remove what goes."""
    work.removal = replace(work.removal, cuts=remove(work.analysis, work.decision.choice.keep))


def prove_pruned(work: Work) -> None:
    """The pruned graph computes what the masked one does."""
    compilation, model = work.compilation, work.analysis.model
    work.verification = prove(model, work.probes, work.removal)
    work.removal = Removal()  # what was cut is as large as the model
    if compilation.options.measure and has_parts(compilation.options) and not compilation.dense.by_parts:
        write(model, compilation.scratch.pruned)


def repair(work: Work) -> None:
    """New weights for what is left, so that its layers give what the dense ones gave on the samples."""
    compilation, analysis, plan = work.compilation, work.analysis, work.decision.plan
    options, scratch = compilation.options, compilation.scratch
    method = method_for(options, analysis.model)
    if options.recover == "auto":
        compilation.remark(f"--recover auto is {method}")
    if method == "none" or not plan.removes_anything:
        return
    samples = compilation.samples
    if not samples.real:
        data = data_of(samples, analysis.model)
        compilation.warnings.append(
            f"--recover {method} works on {data}, as --calib gives no samples: check the accuracy"
        )
    dense = (
        scratch.fewer if plan.tokens else compilation.dense.path
    )  # tokens that went have nothing to be compared with
    kept, mixtures = kept_values(analysis, work.decision.choice.keep), mixtures_of(analysis)
    found = run_repair(compilation, dense, analysis.model, kept, mixtures)
    plan.repaired = sorted({*plan.repaired, *found.changed})
    compilation.remarks.extend(("repair", remark) for remark in found.remarks)
    if told := left_alone(found):
        compilation.warnings.append(told)
    compilation.note("repair", facts_of(found, method, samples, analysis.model))
    if options.recover == "distill":
        facts, changed = distil(
            analysis.model,
            dense,
            samples,
            kept,
            scratch.student,
            budget=options.recover_budget,
            seed=options.seed,
            progress=compilation.progress,
        )
        plan.repaired = sorted({*plan.repaired, *changed})
        compilation.note("distill", facts)


def close_caches(work: Work) -> None:
    """The caches of layers that went leave the model's inputs and outputs, and the others are numbered anew. Norms are
    fused again with the sums before them."""
    compilation, plan = work.compilation, work.decision.plan
    join_skip_norms(work.analysis.model)
    gone, renamed = close_ports(work.analysis.model)
    last = frozenset[str]()
    if compilation.options.last_logits:
        found = LastLogits().run(work.analysis.model, plan, compilation)
        compilation.note(LastLogits.name, found.facts)
        last = frozenset({compilation.text.logits}) if compilation.text is not None else last
    if gone or last:
        ports = Narrowed(gone=frozenset(gone), renamed=renamed, last=last)
        compilation.narrowed = replace(compilation.narrowed, gone=ports.gone, renamed=renamed, last=last)
        plan.ports = ports.ports()
        work.probes.narrow(ports)


def run_passes(work: Work) -> None:
    """Patterns and quantization over what is left."""
    compilation = work.compilation
    passes = passes_for(compilation.options)
    if not passes:
        return
    compilation.pass_feeds = compilation.calibration_feeds()
    for one in passes:
        if one.only_rounds:
            work.passed = replace(work.passed, in_float=work.analysis.model.clone())
        begun = time.perf_counter()
        result = one.run(work.analysis.model, work.decision.plan, compilation)
        compilation.remarks.extend((one.name, remark) for remark in result.remarks)
        compilation.warnings.extend(result.facts.get("warnings", ()))
        work.passed = work.passed.behind(result)
        compilation.note(str(one), result.facts, begun=begun)


def build(work: Work) -> None:
    """What the target's runtime loads."""
    compilation, asked = work.compilation, work.compilation.options
    model = at_versions(work.analysis.model, asked.opset, asked.ir_version)
    if not asked.doc_strings:
        model.doc_string = model.graph.doc_string = None
        for value in (*model.graph.inputs, *model.graph.outputs):
            value.doc_string = None
    options = work.backend.build_options(asked)
    made = work.backend.build(model, work.folder, options, compilation.progress)
    work.artefact = replace(made, runner=None)  # the probes alone hold it, and let it go
    if made.runner is not None and asked.threads == 1:
        work.probes.take(work.compiled, made.runner)


def verify(work: Work) -> None:
    """What was built computes what the graph does that it was built from."""
    model, plan = work.analysis.model, work.decision.plan
    checks = work.probes.of_built(work.backend, work.compiled, model, plan, work.passed)
    work.verification, work.passed = together(work.verification, checks), Passed()  # as large as the model


def measure(work: Work) -> None:
    """How fast, how large, and how close to the dense model."""
    work.measured = measured(work.compilation, work.backend, work.compiled, work.probes)


def score_compiled(work: Work) -> None:
    """The user's metric of what was built."""
    work.accuracy = evaluate.evaluate(work.probes, work.backend, work.compiled, work.score)


def cross_fit(work: Work) -> None:
    """Where samples are few, all of them judge, each a fit that it had no part in."""
    siblings.cross_fit(work, _graph)


def try_next_steps(work: Work) -> None:
    """Where the result is not usable: what would be."""
    siblings.try_next_steps(work, _graph)


def _graph(compilation: Compilation) -> Work:
    """What a compile makes before a backend builds from it."""
    return walk(Work(compilation), [stage for stage in MAKING if stage.run is not build])


STAGES = (
    Stage("load", 0.0, load),
    Stage("evaluate the original", 0.05, score_original, checks=True),
    Stage("choose", 0.1, choose),
    Stage("mask", 0.2, mask, checks=True),
    Stage("prune", 0.25, prune),
    Stage("prove", 0.3, prove_pruned, checks=True, ours=True),
    Stage("repair", 0.35, repair),
    Stage("caches", 0.4, close_caches),
    Stage("passes", 0.4, run_passes),
    Stage("build", 0.5, build),
    Stage("verify", 0.6, verify, checks=True, ours=True),
    Stage("measure", 0.7, measure, checks=True),
    Stage("cross-fit", 0.85, cross_fit, checks=True),
    Stage("evaluate", 0.9, score_compiled, checks=True),
    Stage("next steps", 0.95, try_next_steps, checks=True),
)
"""A compile. What is read by a stage stands in an earlier one."""

MAKING = tuple(stage for stage in STAGES if not stage.checks)
"""What makes the model and no more: a trial of a search to a goal."""

DECIDING = MAKING[: 1 + [stage.run for stage in MAKING].index(choose)]
"""What decides, and edits nothing: a dry run."""


def walk(work: Work, stages: Iterable[Stage] = STAGES) -> Work:
    """Run stages in turn, each announced and timed."""
    ends = dict(zip(STAGES, [stage.share for stage in STAGES[1:]] + [1.0], strict=True))
    for stage in stages:
        with work.compilation.stage(stage.name, stage.share, ends[stage]):
            try:
                stage.run(work)
            except RuntimeRefusalError as e:
                if not stage.ours:
                    raise
                reason = str(e).rsplit(": ", 1)[0]  # without the advice, which is for files of the user's
                raise InternalError(
                    f"the file runs, what was made of it does not ({reason}): please report it with the file, or with "
                    "what --debug keeps"
                ) from e
        memory.give_back()
    return work


def loaded(compilation: Compilation) -> ir.Model:
    """The user's file, normalised; where layers may go, with every layer ending in an Add."""
    model = normalise(load_ir(compilation.file))
    if "layers" in compilation.options.prune:
        split_skip_norms(model)
    return model


def begin(compilation: Compilation) -> Analysis:
    """Load, normalise and analyse the user's file, at input sizes it really runs at."""
    model = loaded(compilation)
    if fixed := model.meta.get(FIXED):
        both = "in the result, and in the dense model that it is timed against"
        compilation.warnings.append(
            f"{fixed} weights that the file lists as inputs are constants {both}: runtimes fold those"
        )
    if guarded := model.meta.get(GUARDED):
        more = f" and {len(guarded) - 1} more" if len(guarded) > 1 else ""
        compilation.warnings.append(
            f"ONNX Runtime loses the zeros of Pad {quoted(guarded[0])}{more} before a MaxPool when it runs the file "
            "as it is; in the result, and in the dense model it is compared with, they are numbers next to zero, "
            "which it keeps"
        )
    if unbiased := model.meta.get(UNBIASED):
        more = f" and {len(unbiased) - 1} more" if len(unbiased) > 1 else ""
        compilation.warnings.append(
            f"ONNX Runtime dies of the attention {quoted(unbiased[0])}{more} without a bias when it runs the file as "
            "it is; in the result, and in the dense model it is compared with, there is one of zeros"
        )
    if cleared := model.meta.get(CLEARED):
        more = f" and {len(cleared) - 1} more" if len(cleared) > 1 else ""
        compilation.warnings.append(
            f"ONNX Runtime clears the input of the mixture of experts {quoted(cleared[0])}{more} before it is read "
            "when it runs the file as it is: all its outputs are zero; in the result, and in the dense model it is "
            "compared with, the input is kept"
        )
    _ = compilation.slots, compilation.base  # what is wrong with them is said before anything long begins
    compilation.take(model)
    if compilation.options.last_logits:
        head_of(model, compilation.text)  # what cannot be is said before any long work
    require_room(compilation)
    for one in passes_for(compilation.options):
        one.require_names(model)
    analysis = compilation.settled()
    if compilation.calibration is None:
        say_unjudged(compilation)
    if compilation.general is not None:
        _ = compilation.general.samples  # what is wrong with them is said before anything long begins
    return analysis


def say_unjudged(compilation: Compilation) -> None:
    """Say at once what cannot be done without samples, and what is done instead."""
    options = compilation.options
    if not (options.removes or options.quantize or options.sparsity or options.tokens):
        return
    repairs = method_for(options, compilation.dense.model) != "none"
    how = "weights are repaired on random inputs" if repairs else "nothing can be repaired"
    compilation.say(
        f"no samples: {how}, and what is lost cannot be judged: give some with --calib", judged=False
    )


def require_room(compilation: Compilation) -> None:
    """InputError where the options need more than a part of a model in memory, and there is no room."""
    options, backend = compilation.options, backend_named(compilation.target.backend)
    wants = {
        "--calib": options.data is not None,
        "--prune layers": "layers" in options.prune,
        "--tokens": options.tokens is not None,
        f"--recover {options.recover}": options.recover not in ("auto", "none"),
        "--emit ort": options.emit == "ort",
        f"target {options.target}": not backend.takes_any_size,
    }
    asked = next((name for name, wanted in wants.items() if wanted), None)
    if compilation.dense.by_parts and asked:
        raise InputError(
            f"{compilation.dense.too_large()}: {asked} needs it whole: raise --memory-limit, or leave it out"
        )
