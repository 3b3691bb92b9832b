"""The way of a compile, top to bottom. It runs inside a worker process; `sparsecc.api` is the face."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import onnx_ir as ir
import yaml

from sparsecc.backends import backend_named
from sparsecc.backends.base import Artefact
from sparsecc.bundle.folder import BundleWriter
from sparsecc.calibrate.layer_statistics import RUN_FACTS
from sparsecc.calibrate.routers import mixtures_of
from sparsecc.cost import summary
from sparsecc.criteria import criterion_named
from sparsecc.data.files import SYNTHETIC
from sparsecc.data.random_inputs import feeds_from
from sparsecc.data.samples import Samples, samples_of
from sparsecc.decide.channels import POOR, Choice, Source, choose, criterion_for, require_methods
from sparsecc.decide.layers import Depth, shorten
from sparsecc.decide.passes import build_options, passes_for, require_passes
from sparsecc.decide.tokens import thin
from sparsecc.escaping import quoted
from sparsecc.graph.analysis import Analysis
from sparsecc.graph.groups import Group, find_groups
from sparsecc.graph.rewrite import remove
from sparsecc.loading.models import load_ir
from sparsecc.loading.normalise import FIXED, GUARDED, normalise
from sparsecc.options import CompileOptions
from sparsecc.passes.base import PassContext, Skip
from sparsecc.plan import Plan, make_plan
from sparsecc.reconstruct.distillation import distil
from sparsecc.reconstruct.stage import data_of, facts_of, kept_values, left_alone, method_for, run_repair
from sparsecc.reference.pruned_io import Narrowed
from sparsecc.report import assemble
from sparsecc.system.files import file_sha256, size_of
from sparsecc.system.temp_folders import temporary_folder
from sparsecc.system.versions import versions
from sparsecc.targets import target_named
from sparsecc.verify.evaluate import evaluate, score_of_dense
from sparsecc.verify.prove import Probes, prove

Emit = Callable[[dict[str, Any]], None]
Again = Callable[[ir.Model, Analysis], Analysis]
"""(a copy of a model, the model's analysis) -> the same analysis of the copy."""


@dataclass
class Job:
    """A compile under way: what was asked, where it works, and what it found so far."""

    model: Path
    options: CompileOptions
    scratch: Path
    emit: Emit
    goal: dict[str, Any] | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    seconds: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    skipped: list[tuple[str, Skip]] = field(default_factory=list)
    read: dict[str, Samples] = field(default_factory=dict)

    def samples_for(self, analysis: Analysis) -> Samples:
        """The calibration samples, read once; random inputs without `--calib`."""
        return self._read("--calib", self.options.calibration, analysis)

    def general_for(self, analysis: Analysis) -> Samples:
        """The samples of `--calib-general`, read once."""
        return self._read("--calib-general", self.options.calibration_general, analysis)

    def _read(self, option: str, spec: str | None, analysis: Analysis) -> Samples:
        if option not in self.read:
            sizes, seed = analysis.shapes.inputs[0], self.options.seed
            self.read[option] = samples_of(spec, analysis.model, sizes=sizes, seed=seed, option=option)
        return self.read[option]

    @contextmanager
    def stage(self, name: str, share: float) -> Iterator[None]:
        """Announce a stage and keep how long it took."""
        self.emit({"stage": name, "share": share})
        begun = time.perf_counter()
        yield
        self.seconds.append({"name": name, **self.since(begun)})

    def since(self, begun: float) -> dict[str, float]:
        """The seconds since then; nothing in a compile that measures nothing, so that its report, too, is the
        same bytes every time."""
        return {"seconds": round(time.perf_counter() - begun, 3)} if self.options.measure else {}


@dataclass(frozen=True)
class Decision:
    """What a compile decided, and what that costs: {"before", "after"} -> {"macs", "params"}."""

    groups: list[Group]
    choice: Choice
    plan: Plan
    costs: dict[str, dict[str, int]]
    layers: list[dict[str, Any]]


def compile_model(request: dict[str, Any], emit: Emit) -> dict[str, Any]:
    """Compile `request["model"]` with `request["options"]` into the bundle `request["output"]`."""
    options = CompileOptions.of(request["options"])
    require_methods(options)  # what cannot be done is refused before anything is loaded
    require_passes(options)
    with temporary_folder("scratch") as scratch:
        job = Job(Path(request["model"]), options, Path(scratch), emit, request.get("goal"))
        if request.get("dry_run"):
            return _dry_run(job)
        with BundleWriter(Path(request["output"]), force=bool(request.get("force"))) as bundle:
            report, plan = _compile(job, bundle)
    return {"bundle": str(bundle.destination), "report": report, "plan": plan}


def _compile(job: Job, bundle: BundleWriter) -> tuple[dict[str, Any], dict[str, Any]]:
    options, target = job.options, target_named(job.options.target)
    backend = backend_named(target.backend)
    backend.require(build_options(options))
    with job.stage("load", 0.0):
        analysis, probes = open_for_compile(job)
    with job.stage("evaluate the original", 0.05):
        score = score_of_dense(job, probes)
    with job.stage("choose", 0.1):
        analysis, depth = reduced(job, analysis, probes)
        decision = decide(job, analysis, depth, probes.analysed)
        plan, keep = decision.plan, decision.choice.keep
    with job.stage("prune", 0.2):
        proof = probes.of_removal(analysis, keep) if keep else []
        remove(analysis, keep)
    with job.stage("prove", 0.3):
        verification = prove(job, analysis.model, probes, proof)
    with job.stage("repair", 0.35):
        repair_pruned(job, analysis, decision)
    with job.stage("passes", 0.4):
        run_passes(job, analysis.model, plan, probes)
    with job.stage("build", 0.5):
        progress = _progress(job.emit, 0.5, 0.1)
        artefact = backend.build(analysis.model, bundle.folder, build_options(options), progress)
    compiled = bundle.folder / artefact.main
    with job.stage("verify", 0.6):
        verification |= probes.of_artefact(backend, compiled, analysis.model, plan)
    with job.stage("measure", 0.7):
        measured = assemble.measure(job, backend, compiled, probes)
    with job.stage("evaluate", 0.9):
        accuracy = evaluate(job, backend, compiled, probes, score)
    sizes = {"before": probes.dense_bytes, "after": size_of(bundle.folder)}
    measured |= {"bytes": sizes, "built": built_facts(job, artefact)}
    report = assemble.report(job, decision, verification, measured, accuracy)
    write_bundle(job, bundle, plan, report)
    return report, plan.to_json()


def _dry_run(job: Job) -> dict[str, Any]:
    """What would be decided, without writing anything."""
    analysis, probes = open_for_compile(job)
    analysis, depth = reduced(job, analysis, probes)
    decision = decide(job, analysis, depth, probes.analysed)
    report = assemble.report(job, decision, {}, {}, None)
    return {"bundle": None, "report": report, "plan": decision.plan.to_json()}


def open_for_compile(job: Job) -> tuple[Analysis, Probes]:
    """Load, normalise and analyse the input, at input sizes it really runs at."""
    model = normalise(load_ir(job.model))
    if fixed := model.meta.get(FIXED):
        both = "in the result, and in the dense model that it is timed against"
        job.warnings.append(
            f"{fixed} weights that the file lists as inputs are constants {both}: runtimes fold those"
        )
    if guarded := model.meta.get(GUARDED):
        more = f" and {len(guarded) - 1} more" if len(guarded) > 1 else ""
        job.warnings.append(
            f"ONNX Runtime loses the zeros of Pad {quoted(guarded[0])}{more} before a MaxPool when it runs the file "
            "as it is; in the result, and in the dense model it is compared with, they are numbers next to zero, "
            "which it keeps"
        )
    probes = Probes(job.scratch, model, job.options, job.model)
    probes.require_known_inputs()
    probes.require_room()
    analysis = probes.analysed(model)
    probes.settle(analysis)
    if job.options.calibration_general is not None:
        job.general_for(analysis)  # what is wrong with it is said before anything long begins
    return analysis, probes


def reduced(job: Job, analysis: Analysis, probes: Probes) -> tuple[Analysis, Depth]:
    """Without the layers, then the tokens, that were asked to go: what channels are removed from."""
    return thin(job, *shorten(job, analysis, probes), probes)


def decide(job: Job, analysis: Analysis, depth: Depth, again: Again) -> Decision:
    """What is kept of the layers that are left, per tensor and axis, and what that costs."""
    options = job.options
    groups = find_groups(analysis, keep=depth.keep, only=depth.only, prune=options.prune)
    left = depth.ratio_left(options.ratio or 0.0)
    progress = _progress(job.emit, 0.1, 0.1)
    general = None if options.calibration_general is None else lambda: job.general_for(analysis)
    source = Source(
        lambda: job.samples_for(analysis),
        job.scratch,
        progress,
        general,
        again=lambda: again(analysis.model.clone(), analysis),
    )
    choice = depth.joined(choose(analysis, groups, options, left, source), options.ratio)
    note_choice(job, choice)
    if options.calibration_general is not None and not criterion_named(criterion_for(options)).needs_general:
        job.warnings.append(f"--calib-general was not used: criterion {options.criterion} looks at one set")
    is_free = any(g.is_free for g in groups) or any(b.is_free for b in depth.blocks)
    if not is_free and options.ratio:
        job.warnings.append("nothing in this model can be removed: see what is pinned and why")
    elif not choice.reached:
        most = f"{choice.removed:.3f} of the {options.metric} is the most that can go"
        job.warnings.append(f"ratio {options.ratio:g} was not reached: {most}")
    costs = summary.costs(analysis, choice.keep)
    costs["before"].update(depth.before)
    facts = {
        "sha256": file_sha256(job.model),
        "nodes": len(analysis.model.graph) - depth.added + len(depth.nodes),
        "params": costs["before"]["params"],
        "macs": costs["before"]["macs"],
    }
    plan = make_plan(analysis, groups, choice.keep, facts)
    plan.groups += depth.rows(len(groups))
    plan.dropped_nodes = list(depth.nodes)
    plan.tokens = dict(depth.tokens)
    plan.io = Narrowed.of(analysis, choice.keep).to_json()
    layers = depth.dense_rows(summary.layers(analysis, choice.keep))
    return Decision(groups, choice, plan, costs, layers)


def note_choice(job: Job, choice: Choice) -> None:
    """How slots were chosen, for the report; a warning where the curves foresee a poor result."""
    if choice.calibration:
        told = {k: v for k, v in choice.calibration.items() if job.options.measure or k not in RUN_FACTS}
        job.seconds.append({"name": "calibrate", "facts": told})
    if choice.method:
        facts = {**choice.method, "predicted_error": choice.predicted}
        job.seconds.append({"name": "choose", "facts": facts})
    if choice.advised is not None:
        kept = f"at ratio {choice.advised:g} it is below {POOR:g}" if choice.advised else "less is advised"
        more = "" if job.options.recover == "distill" else "; --recover distill regains part of it"
        job.warnings.append(f"ratio {choice.asked:g} is predicted to change outputs a lot: {kept}{more}")


def repair_pruned(job: Job, analysis: Analysis, decision: Decision) -> None:
    """New weights for what is left, so that its layers give what the dense ones gave on the samples."""
    method, plan = method_for(job.options, analysis.model), decision.plan
    if method == "none" or not plan.removes_anything:
        return
    samples = job.samples_for(analysis)
    if not samples.real:
        data = data_of(samples, analysis.model)
        job.warnings.append(
            f"--recover {method} works on {data}, as --calib gives no samples: check the accuracy"
        )
    like = "fewer" if plan.tokens else "dense"  # tokens that are left out have nothing to be compared with
    dense, kept = job.scratch / like / "model.onnx", kept_values(analysis, decision.choice.keep)
    progress = _progress(job.emit, 0.35, 0.05)
    mixtures = mixtures_of(analysis)
    found = run_repair(analysis.model, dense, kept, samples, job.options, job.scratch, progress, mixtures)
    plan.repaired = sorted(set(found.changed))
    job.skipped.extend(("repair", skip) for skip in found.skipped)
    if told := left_alone(found):
        job.warnings.append(told)
    job.seconds.append({"name": "repair", "facts": facts_of(found, method, samples, analysis.model)})
    if job.options.recover == "distill":
        budget, seed = job.options.recover_budget, job.options.seed
        facts, changed = distil(
            analysis.model, dense, samples, kept, job.scratch, budget=budget, seed=seed, progress=progress
        )
        plan.repaired = sorted({*plan.repaired, *changed})
        job.seconds.append({"name": "distill", "facts": facts})


def run_passes(job: Job, model: ir.Model, plan: Plan, probes: Probes) -> None:
    """Patterns and quantization over what is left."""
    target = target_named(job.options.target)
    passes = passes_for(job.options)
    if not passes:
        return
    feeds = tuple(calibration_feeds(job, model, probes))
    options, progress = job.options, _progress(job.emit, 0.4, 0.1)
    context = PassContext(
        target, job.scratch, feeds, options.seed, progress, options.calib_memory, options.measure
    )
    for one in passes:
        begun = time.perf_counter()
        result = one.run(model, plan, context)
        job.skipped.extend((one.name, skip) for skip in result.skipped)
        job.warnings.extend(result.facts.get("warnings", ()))
        job.seconds.append({"name": str(one), **job.since(begun), "facts": result.facts})


def calibration_feeds(job: Job, model: ir.Model, probes: Probes) -> Iterator[dict[str, Any]]:
    """The samples of `--calib`, at most `Probes.SAMPLES` batches; none without it."""
    if job.options.calibration == SYNTHETIC:
        yield from (probes.narrowed.feeds(feeds) for feeds in probes.synthetic(8))
    elif job.options.calibration:
        for feeds in islice(feeds_from(job.options.calibration, model), Probes.SAMPLES):
            yield probes.narrowed.feeds(feeds)


def built_facts(job: Job, artefact: Artefact) -> dict[str, Any]:
    """What the backend says of its build; no time in a compile that measures nothing."""
    return {k: v for k, v in artefact.facts.items() if job.options.measure or k != "build_seconds"}


def write_bundle(job: Job, bundle: BundleWriter, plan: Plan, report: dict[str, Any]) -> None:
    """Everything beside the artefact: plan, report, page, recipe; the manifest follows by itself."""
    from sparsecc.report.html import compile_page

    recipe = yaml.safe_dump(job.options.to_recipe(), sort_keys=True)
    bundle.facts = {
        "input": {"sha256": plan.model["sha256"]},
        "versions": versions(),
        "seed": job.options.seed,
    }
    bundle.write_json("plan.json", plan.to_json())
    bundle.write_json("report.json", report)
    (bundle.folder / "recipe.yaml").write_text(recipe)
    page = compile_page(report, plan.to_json(), recipe=recipe, command=f"sparsecc compile {job.model.name}")
    (bundle.folder / "report.html").write_text(page, encoding="utf-8")


def _progress(emit: Emit, start: float, width: float) -> Callable[[str, float], None]:
    return lambda what, share: emit({"stage": what, "share": start + width * share})
