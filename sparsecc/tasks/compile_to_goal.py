"""Compile to a goal: models made at a few ratios and measured, until the ratio that meets it is known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from sparsecc.backends import backend_named
from sparsecc.backends.onnxruntime_cpu import OnnxRuntimeCpu
from sparsecc.decide.goals import REFUSED, TRIALS, Goal, Settled, Trial, settle
from sparsecc.decide.passes import build_options
from sparsecc.errors import GoalError, UnavailableError
from sparsecc.graph.analysis import Analysis, analyse
from sparsecc.graph.rewrite import remove
from sparsecc.loading.models import load_ir
from sparsecc.loading.normalise import normalise
from sparsecc.measure.footprint import footprint
from sparsecc.measure.interleave import Budget
from sparsecc.measure.pair import measure_pair
from sparsecc.options import CompileOptions
from sparsecc.reference.pruned_io import Narrowed
from sparsecc.runtime.session import open_session
from sparsecc.system.files import size_of
from sparsecc.system.temp_folders import temporary_folder
from sparsecc.targets import target_named
from sparsecc.tasks import compile as pipeline
from sparsecc.tasks.ask_device import require_device
from sparsecc.tasks.compile import Decision, Emit, Job
from sparsecc.verify.evaluate import function_of, score
from sparsecc.verify.prove import Probes

_COARSE = Budget(pairs=48, seconds=3.0, warmup_seconds=0.2)
_FINE = Budget(pairs=120, seconds=8.0, warmup_seconds=0.3)
_NEARBY = 0.12


def compile_model(request: dict[str, Any], emit: Emit) -> dict[str, Any]:
    """As `pipeline.compile_model`, with the goals among the options first turned into a ratio.

    GoalError where nothing near the goal can be reached; nothing is written then.
    """
    options = CompileOptions.of(request["options"])
    goal, builds = Goal.of(options), not request.get("dry_run")
    times = (options.measure and builds) or (goal is not None and goal.is_timed)
    require_device(options, Path(request["model"]), times=times, builds=builds)
    if goal is None:
        return pipeline.compile_model(request, emit)
    with temporary_folder("scratch") as scratch:
        job = Job(Path(request["model"]), options, Path(scratch), _scaled(emit, 0.0))
        settled = Workshop.open(job, goal).settle()
    if settled.excess > REFUSED:
        raise GoalError(settled.notes[-1])
    resolved = replace(
        options,
        ratio=settled.ratio,
        speedup=None,
        latency=None,
        fps=None,
        size=options.size if options.mixes_types else None,
        working_memory=None,
        max_drop=None,
    )
    facts = {
        "asked": goal.asked,
        "trials": [trial.to_json() for trial in settled.trials],
        "notes": settled.notes,
    }
    return pipeline.compile_model(
        {**request, "options": resolved.to_recipe(), "goal": facts}, _scaled(emit, 0.5)
    )


def _scaled(emit: Emit, start: float) -> Emit:
    """Events of one half of the whole."""
    return lambda event: emit({**event, "share": start + 0.5 * float(event.get("share", 0.0))})


@dataclass
class Workshop:
    """Makes models at ratios and measures them against the dense one."""

    job: Job
    goal: Goal
    probes: Probes
    sizes: list[dict[str, tuple[int, ...]]]
    made: list[Trial] = field(default_factory=list)
    dense_score: float | None = None
    dense_memory: int | None = None

    @staticmethod
    def open(job: Job, goal: Goal) -> Workshop:
        """Load the model once to learn at which sizes it runs. UnavailableError where it cannot be timed."""
        backend = backend_named(target_named(job.options.target).backend)
        if (goal.is_timed or goal.working_memory) and not isinstance(backend, OnnxRuntimeCpu):
            raise UnavailableError(
                f"target {job.options.target} cannot be measured here: give --ratio instead of {goal.words()}"
            )
        job.emit({"stage": "load", "share": 0.0})
        analysis, probes = pipeline.open_for_compile(job)
        if probes.by_parts:
            raise UnavailableError(f"{probes.too_large()}: {goal.words()} cannot be measured, give --ratio")
        shop = Workshop(job, goal, probes, [dict(one) for one in analysis.shapes.inputs])
        if goal.max_drop is not None:
            shop.dense_score = shop.score(probes.dense)
        if goal.working_memory is not None:
            shop.dense_memory = shop.memory_of(job.model)
        return shop

    def settle(self) -> Settled:
        """The ratio that meets the goal, or comes nearest."""
        return settle(self.goal, self.attempt, self.job.options.ratio)

    def attempt(self, ratio: float) -> Trial:
        """Make and measure a model; where the same slots went before, its figures are taken."""
        number = len(self.made)
        self.job.emit({"stage": f"trial {number + 1}: ratio {ratio:.3f}", "share": number / (2 * TRIALS)})
        folder = self.job.scratch / f"trial{number}"
        folder.mkdir()
        decision = self.build(ratio, folder)
        choice = decision.choice
        known = next((t for t in self.made if abs(t.removed - choice.removed) < 1e-9), None)
        if known is None:
            known = self.measured(Trial(ratio, choice.removed, size_of(folder), self.dense_bytes), folder)
        trial = replace(known, ratio=ratio, exhausted=not choice.reached, held=held_back(decision))
        self.made.append(trial)
        for file in folder.iterdir():
            file.unlink()
        return trial

    def build(self, ratio: float, folder: Path) -> Decision:
        """The artefact at a ratio, in `folder`, made as a compile makes it."""
        options = replace(self.job.options, ratio=ratio)
        job = Job(self.job.model, options, self.job.scratch, lambda event: None, read=self.job.read)
        analysis = self.analysed(normalise(load_ir(job.model)))
        analysis, depth = pipeline.reduced(job, analysis, self.probes)
        decision = pipeline.decide(job, analysis, depth, lambda model, like: self.analysed(model))
        self.probes.narrowed = Narrowed.of(analysis, decision.choice.keep)
        remove(analysis, decision.choice.keep)
        pipeline.repair_pruned(job, analysis, decision)
        pipeline.run_passes(job, analysis.model, decision.plan, self.probes)
        backend_named(target_named(options.target).backend).build(
            analysis.model, folder, build_options(options), lambda what, share: None
        )
        return decision

    def analysed(self, model: ir.Model) -> Analysis:
        """A model analysed at the input sizes that the dense one was seen to run at."""
        options, sample = self.job.options, self.probes.sample_sizes
        return analyse(model, options.dims, prune_io=options.prune_io, runs=self.ran_at, sample=sample)

    def ran_at(self, sizes: Mapping[str, tuple[int, ...]]) -> bool:
        """Whether the dense model was seen to run at these input sizes."""
        return dict(sizes) in self.sizes

    @property
    def dense_bytes(self) -> int:
        return self.probes.dense_bytes

    def measured(self, trial: Trial, folder: Path) -> Trial:
        """With its speed and score. What is near the goal is measured longer."""
        model = folder / "model.onnx"
        if self.goal.is_timed:
            trial = self.timed(trial, model, _COARSE, 4)
            if abs(self.goal.excess(trial)) < _NEARBY:
                trial = self.timed(trial, model, _FINE, 8)
        if self.goal.working_memory is not None:
            trial = replace(trial, memory=self.memory_of(model), dense_memory=self.dense_memory)
        if self.goal.max_drop is not None:
            trial = replace(trial, score=self.score(model), dense_score=self.dense_score)
        return trial

    def memory_of(self, model: Path) -> int:
        """Bytes that loading and running a model once adds to a process."""
        small = None if model == self.job.model else self.probes.small_feeds
        return footprint(
            model, small or self.probes.feeds[0], threads=self.job.options.threads
        ).model_memory_bytes

    def timed(self, trial: Trial, model: Path, budget: Budget, rounds: int) -> Trial:
        """With its speed, interleaved with the dense model on the device."""
        options = self.job.options
        told = measure_pair(
            self.probes.dense,
            model,
            self.probes.feeds[0],
            device=options.device,
            threads=options.threads,
            seed=options.seed,
            rounds=rounds,
            budget=budget,
            after_feeds=self.probes.small_feeds,
        )
        ratio = told.ratio()
        interval = (float(np.exp(-ratio.high)), float(np.exp(-ratio.low)))
        dense = told.before.p50
        return replace(trial, speedup=ratio.speedup, ci95=interval, dense_ms=dense, ms=dense / ratio.speedup)

    def score(self, model: Path) -> float:
        """The user's metric of a model."""
        assert self.job.options.evaluate is not None
        runner = open_session(model, threads=self.job.options.threads)
        narrowed = Narrowed() if model == self.probes.dense else self.probes.narrowed
        function = function_of(self.job.options.evaluate)
        return score(function, lambda feeds: runner.run(narrowed.feeds(feeds)))


def held_back(decision: Decision) -> str:
    """Why no more goes: the share of the work left in layers that stay whole, and the main reason."""
    left = sum(layer["macs_after"] for layer in decision.layers) or 1
    whole = sum(y["macs_after"] for y in decision.layers if y["macs_after"] == y["macs_before"])
    pinned = [group for group in decision.groups if group.pinned is not None and group.params]
    why = f", most weights among the pinned: {max(pinned, key=lambda g: g.params).pinned}" if pinned else ""
    return f"{whole / left:.0%} of the multiply-accumulates left are in layers that stay whole{why}"
