"""From groups, scores and a budget to keep-masks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from sparsecc.allocators import Allocator, Candidate, Problem, allocator_named, name_of
from sparsecc.allocators.angular import turns
from sparsecc.allocators.dynamic_program import least_sum, loss_at
from sparsecc.allocators.joint_error import RUNS, CutLosses, Joint
from sparsecc.allocators.output_error import Bench
from sparsecc.allocators.pieces import Pieces, aligned
from sparsecc.allocators.sensitivity import known_or_measured
from sparsecc.allocators.trial_repair import PLANS, Rehearsal, Stage
from sparsecc.axes.algebra import Atom, parts_of, resolve
from sparsecc.axes.sizes import at
from sparsecc.calibrate.batch_norm_matching import matched
from sparsecc.calibrate.channels import Channels
from sparsecc.calibrate.layer_statistics import Stats, collect
from sparsecc.compilation import Compilation
from sparsecc.cost.model import CostModel, cache_model, macs_model, params_model, slots_model
from sparsecc.criteria import CRITERIA, FOR_EXPERTS, FOR_THRESHOLDS, WITH_DATA, WITHOUT_DATA, criterion_named
from sparsecc.criteria.evidence import Evidence
from sparsecc.criteria.experts import spared
from sparsecc.criteria.gradient import Gradients
from sparsecc.criteria.weights import SlotWeights
from sparsecc.decide.data_free import Method, keep_of, least_moved
from sparsecc.decide.limits import Limits, settle
from sparsecc.errors import InputError
from sparsecc.graph.analysis import Analysis
from sparsecc.graph.groups import Group
from sparsecc.options import CompileOptions
from sparsecc.reconstruct.stage import method_for
from sparsecc.rules import Trait, traits_of
from sparsecc.system.gc_pause import collector_paused
from sparsecc.targets import Target, target_named

FLOOR = 0.1
"""The share of a group that always stays: an emptied layer cuts the network."""

POOR = 0.4
"""Predicted squared error of the outputs, relative to their variance, above which a ratio is too much: beyond it
measured models lost two points of accuracy or nearly so, below it small tasks less than four (docs/methods.md)."""


@dataclass(frozen=True)
class Choice:
    """The masks, what they cost by the asked metric, and whether the budget was reached.

    `method` says how it was chosen, `calibration` what was collected for that; `predicted` is the relative
    output error that measured curves add up to, for the plan by curves where that was beaten, None without them;
    `rehearsed` that of the plan as it was removed and repaired on other samples, None where it was not;
    `advised` is the largest ratio found at which the loss that is foreseen stays below POOR, where it does not.
    """

    keep: dict[Atom, np.ndarray]
    asked: float
    before: float
    after: float
    reached: bool
    method: dict[str, Any] = field(default_factory=dict)
    calibration: dict[str, Any] = field(default_factory=dict)
    predicted: float | None = None
    rehearsed: float | None = None
    advised: float | None = None

    @property
    def removed(self) -> float:
        """The share of the metric that goes."""
        return 1 - self.after / self.before if self.before else 0.0


@dataclass(frozen=True)
class Dead:
    """`slots` of each atom that are dead: boolean (size,). `carriers`: the constant slot of an atom that stays, and
    that padding convolutions read instead of its others."""

    slots: dict[Atom, np.ndarray] = field(default_factory=dict)
    carriers: dict[Atom, int] = field(default_factory=dict)


def choose(
    compilation: Compilation,
    analysis: Analysis,
    groups: Sequence[Group],
    ratio: float,
    dead: Dead | None = None,
    limits: Limits | None = None,
) -> Choice:
    """Which slots of the free groups stay so that `ratio` of the metric goes; those that are `dead` go in any
    case, and all keeps within the `limits` of groups."""
    dead, limits = dead or Dead(), limits or Limits()
    options = compilation.options
    require_methods(options)
    cost = cost_model(analysis, groups, options.metric, threads=options.threads)
    if options.metric == "kv" and not compilation.caches:  # layers may have taken them all
        require_caches(cost)
    counts = {g.atom for g in groups if options.metric != "kv" or cost.at_stake(g.atom)}
    free = [g for g in groups if g.is_free and g.atom in counts]  # what no cache holds would go in vain
    before = cost.total({})
    if not free or (ratio == 0 and not limits.rank):
        keep = {g.atom: ~gone for g in free if (gone := named_to_go(g, dead, limits)) is not None}
        after = cost.total({atom: int(slots.sum()) for atom, slots in keep.items()})
        return Choice(keep, ratio, before, after, ratio == 0)
    with compilation.part(0.0, 0.35):
        evidence, budget = evidence_for(compilation, analysis), (1 - ratio) * before
    scores = partial(scored, analysis, free, options, evidence, dead=dead, limits=limits)
    if ratio == 0:
        candidates = scores()
        keep = {c.atom: c.best(c.size) for c in candidates if c.gone is not None}
        after = cost.total({c.atom: c.size for c in candidates})
        return Choice(keep, ratio, before, after, True, {"criterion": criterion_for(options)})
    with compilation.part(0.35, 0.75):
        chosen = method_of(compilation, analysis, free, evidence, scores, cost, budget)
    candidates, losses = chosen.candidates, None
    measured = all(c.curve is not None for c in candidates)
    method: dict[str, Any] = {
        "criterion": chosen.criterion,
        "allocator": name_of(chosen.allocator),
        "curves": measured,
    }
    with compilation.part(0.75, 1.0):
        if evidence.stats is not None:
            losses = cut_losses(compilation, analysis, candidates, evidence.stats, measured=measured)
        problem = Problem(candidates, cost, budget, seed=options.seed, joint=losses)
        allocated = chosen.allocator.allocate(problem)
        selection = aligned(problem, allocated, pieces_of(analysis, options))
        if selection is not allocated and isinstance(losses, Rehearsal):
            losses(selection.counts)  # what is foretold is of this plan
    if losses is not None:
        losses.keep()
        method["tried"] = type(losses).__name__.lower()
    elif chosen.loss is not None:
        method["tried"] = "random inputs"
    keep = keep_of(candidates, selection)
    rehearsed = losses.tried(selection.counts) if isinstance(losses, Rehearsal) else None
    choice = Choice(keep, ratio, before, selection.cost, selection.reached, method, rehearsed=rehearsed)
    if evidence.stats is not None:
        choice = replace(choice, calibration=evidence.stats.facts)
    return foreseen(choice, problem, (selection.beat or selection).counts) if measured else choice


def method_of(
    compilation: Compilation,
    analysis: Analysis,
    free: Sequence[Group],
    evidence: Evidence,
    scores: Callable[..., list[Candidate]],
    cost: CostModel,
    budget: float,
) -> Method:
    """The criterion with its scores, and the allocator: what was asked for, else the best for what is known."""
    options = compilation.options
    is_auto = options.criterion == options.allocator == "auto"
    if options.samples is None and is_auto:
        tried = least_moved(compilation, analysis, scores, cost, budget)
        if tried is not None:
            return tried
    criterion = criterion_for(options)
    with compilation.part(0.0, 0.4):
        candidates = scores(progress=compilation.progress)
    if options.data is not None:
        with compilation.part(0.4, 1.0):
            candidates = informed(compilation, analysis, free, candidates, evidence)
    measured = all(c.curve is not None for c in candidates)
    if not measured and evidence.stats is not None and is_auto:
        criterion, candidates = FOR_THRESHOLDS, scores(FOR_THRESHOLDS)
    return Method(criterion, allocator_named(options.allocator, has_curves=measured), candidates)


def require_methods(options: CompileOptions) -> None:
    """InputError for a criterion or allocator that there is not or that lacks samples, before anything is loaded."""
    name, allocator = criterion_for(options), allocator_for(options)
    row = criterion_named(name)
    if row.needs_data and options.data is None:
        raise InputError(f"criterion {name} looks at activations: give samples with --calib, or use l2")
    if row.needs_general and options.calib_general is None:
        raise InputError(
            f"criterion {name} compares two sets of samples: give the general one with --calib-general"
        )
    if (allocator.uses == "angles" and options.data is None) or (
        allocator.uses == "joint" and options.samples is None
    ):
        raise InputError(
            f"allocator {options.allocator} runs the model on samples: give them with --calib, or use global"
        )


def criterion_for(options: CompileOptions) -> str:
    """The name of the criterion that a compile uses."""
    if options.criterion != "auto":
        return options.criterion
    return WITHOUT_DATA if options.samples is None else WITH_DATA


def evidence_for(compilation: Compilation, analysis: Analysis) -> Evidence:
    """Weights, and statistics where the criterion or the allocator wants them."""
    options, scratch = compilation.options, compilation.scratch
    weights = SlotWeights(analysis, options.seed)
    row = criterion_named(criterion_for(options))
    wants = options.samples is not None and allocator_for(options).uses in ("curves", "joint", "rehearsals")
    if not (row.needs_data or wants):
        return Evidence(weights)
    samples, others = compilation.samples, compilation.general
    general = others.samples if row.needs_general and others is not None else None
    gradients = Gradients(analysis, samples, options.seed, general).of
    walked = {"threads": options.threads, "memory": options.working_memory}
    settings = {"seed": options.seed, **walked}
    channels = Channels(analysis, samples, scratch.channels, **walked).of
    with nullcontext() if samples.real else matched(analysis.model, samples, scratch.matched, **walked):
        stats = collect(analysis, samples, scratch.statistics, **settings, progress=compilation.progress)
    if general is not None:
        stats.facts["general_samples"] = general.number
    return Evidence(weights, stats, gradients, channels)


def allocator_for(options: CompileOptions) -> Allocator:
    """The allocator that a compile uses where it finds all that it would like to know."""
    return allocator_named(options.allocator, has_curves=True)


def informed(
    compilation: Compilation,
    analysis: Analysis,
    free: Sequence[Group],
    candidates: list[Candidate],
    evidence: Evidence,
) -> list[Candidate]:
    """The candidates with what the allocator wants of samples; without loss curves where they take too long."""
    options, scratch = compilation.options, compilation.scratch.turns
    uses, threads = allocator_for(options).uses, options.threads
    if uses == "angles":
        found = turns(analysis, free, compilation.samples, scratch, threads, options.working_memory)
        return [replace(c, turn=found[c.atom]) for c in candidates]
    if uses == "scores" or evidence.stats is None:
        return candidates
    curves = known_or_measured(analysis, candidates, evidence.stats, compilation)
    return candidates if curves is None else [replace(c, curve=curves[c.atom]) for c in candidates]


def cut_losses(
    compilation: Compilation,
    analysis: Analysis,
    candidates: Sequence[Candidate],
    stats: Stats,
    *,
    measured: bool,
) -> CutLosses | None:
    """What the allocator tries cuts with, where it does. InputError where it must and that would take too long."""
    options = compilation.options
    uses = allocator_named(options.allocator, has_curves=measured).uses
    if measured and uses == "rehearsals" and compilation.has_begun and not options.prune_io:
        method = method_for(options, analysis.model)
        again = lambda: compilation.analysed(analysis.model.clone())  # noqa: E731
        stage = Stage.of(compilation, analysis, method, again)
        if stage is not None:
            return Rehearsal(analysis, candidates, stats, stage)
    few = PLANS if measured else 0
    runs = {"joint": RUNS, "curves": few, "rehearsals": few}.get(uses, 0)
    if not runs:
        return None
    bench = Bench.for_runs(analysis, compilation.samples, runs, compilation.scratch.bench, options.threads)
    if bench is not None:
        return Joint(analysis, candidates, stats, bench, compilation.progress)
    if uses != "joint":
        return None
    name = options.allocator
    raise InputError(f"allocator {name} runs the model {RUNS} times, which is too large for that: use global")


def foreseen(choice: Choice, problem: Problem, counts: Mapping[Atom, int]) -> Choice:
    """With the error that the curves predict; where it is poor, with the largest ratio that keeps it. The curves know
    no repair: where this plan was rehearsed, they are scaled to what that found."""
    predicted = _predicted(problem.candidates, counts)
    known = predicted if choice.rehearsed is None else choice.rehearsed
    if known <= POOR:
        return replace(choice, predicted=predicted)
    scale = known / predicted if predicted > 0 else 1.0
    for twentieth in range(int(choice.asked * 20), 0, -1):
        ratio = twentieth / 20
        tried = least_sum(replace(problem, budget=(1 - ratio) * choice.before))
        if ratio < choice.asked and scale * _predicted(problem.candidates, tried.counts) <= POOR:
            return replace(choice, predicted=predicted, advised=ratio)
    return replace(choice, predicted=predicted, advised=0.0)


def _predicted(candidates: Sequence[Candidate], counts: Mapping[Atom, int]) -> float:
    """What the curves of all add up to; sums that were aligned may lie between the steps of a candidate."""
    return sum(loss_at(c.curve, counts[c.atom]) for c in candidates if c.curve is not None)


def require_caches(model: CostModel) -> CostModel:
    """The cost model of caches. InputError where there are none."""
    if not model.terms:
        raise InputError("--metric kv: the model has no caches of keys and values: take macs or params")
    return model


def cost_model(analysis: Analysis, groups: Sequence[Group], metric: str, *, threads: int = 1) -> CostModel:
    """The cost model of a metric, of the whole model whatever `--only` and `--keep` leave alone; that of latency is
    measured on this machine, where it is not known yet."""
    if metric == "params":
        return params_model(analysis)
    if metric == "channels":
        return slots_model(analysis, [g.atom for g in groups if g.atom.pin is None])
    if metric == "kv":
        return cache_model(analysis)
    if metric == "latency":
        from sparsecc.cost.latency import latency_model
        from sparsecc.cost.latency_table import LatencyTable

        return latency_model(analysis, LatencyTable(threads))
    return macs_model(analysis)


@collector_paused()
def scored(
    analysis: Analysis,
    free: Sequence[Group],
    options: CompileOptions,
    evidence: Evidence | None = None,
    instead: str | None = None,
    dead: Dead | None = None,
    limits: Limits | None = None,
    progress: Callable[[str, float], None] = lambda what, share: None,
) -> list[Candidate]:
    """The free groups with their scores, steps and floors; `instead` is another criterion than the asked one, `dead`
    slots are no choice, nor is what `limits` settle."""
    evidence, dead = evidence or Evidence(SlotWeights(analysis, options.seed)), dead or Dead()
    bounds = (limits or Limits()).of
    has_data = evidence.stats is not None and options.samples is not None
    criterion = criterion_named(instead or options.criterion, has_data=has_data)
    for_experts = CRITERIA[FOR_EXPERTS] if has_data and options.criterion == "auto" else criterion
    target = target_named(options.target)
    candidates = []
    for number, group in enumerate(free):
        progress("scores of groups", number / len(free))
        score = (for_experts if group.kind == "expert" else criterion).score
        scores = np.nan_to_num(np.asarray(score(group, evidence), dtype=np.float64), nan=np.inf)
        scores, least = spared(group, evidence, scores)
        if group.atom in dead.carriers:
            scores[dead.carriers[group.atom]] = np.inf
        step = step_of(group, target, options.align)
        shapes = evidence.weights.shapes(group)
        floor = max(group.least, least, int(np.ceil(FLOOR * group.size)))
        if group.atom in bounds:
            scores[bounds[group.atom].held] = np.inf
        gone, floor = settle(bounds.get(group.atom), scores, dead.slots.get(group.atom), step, floor)
        live = scores if gone is None else scores[~gone]
        candidates.append(Candidate(group.atom, len(live), live, step, floor, shapes, gone=gone))
    return candidates


def named_to_go(group: Group, dead: Dead, limits: Limits) -> np.ndarray | None:
    """The slots that go whatever their scores are, boolean; None where none do."""
    return settle(limits.of.get(group.atom), np.zeros(group.size), dead.slots.get(group.atom), 1, 1)[0]


def pieces_of(analysis: Analysis, options: CompileOptions) -> list[Pieces]:
    """The channel axes of convolutions, as far as they are atoms side by side."""
    target, found = target_named(options.target), {}
    for node in analysis.model.graph.all_nodes():
        if not traits_of(node) & Trait.CONVOLUTION:
            continue
        for value in (node.inputs[0], node.outputs[0]):
            axes = analysis.record.axes.get(value, []) if value is not None else []
            parts = [resolve(part) for part in parts_of(axes[1])] if len(axes) > 1 else []
            atoms = tuple(part for part in parts if isinstance(part, Atom) and isinstance(part.size, int))
            if not atoms or len(atoms) < len(parts) or len(set(atoms)) < len(atoms):
                continue
            free = tuple(atom for atom in atoms if atom.pin is None)
            size = sum(int(at(part.size, 0)) for part in parts)
            step = target.multiple(size, feeds_conv=True) if options.align == "auto" else int(options.align)
            if free and step > 1:
                found[free] = Pieces(free, size - sum(int(at(a.size, 0)) for a in free), step)
    return list(found.values())


def step_of(group: Group, target: Target, align: str | int) -> int:
    """The multiple in which a group's count moves: the target's own, or what the user asked for."""
    if align != "auto":
        return max(1, min(int(align), group.size))
    if group.kind in ("head", "expert"):
        return 1
    return target.multiple(group.size, feeds_conv=group.feeds_conv)
