"""Compile to a goal: models made at a few ratios and measured, until the ratio that meets it is known."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from sparsecc.backends import backend_named
from sparsecc.compilation import Compilation, Emit
from sparsecc.data.samples import Feeds
from sparsecc.decide.channels import require_methods
from sparsecc.decide.decision import Decision
from sparsecc.decide.goals import REFUSED, TRIALS, Goal, Settled, Trial, settle
from sparsecc.decide.passes import require_passes
from sparsecc.errors import GoalError, UnavailableError
from sparsecc.measure.footprint import footprint
from sparsecc.measure.interleave import Budget
from sparsecc.measure.pair import measure_pair
from sparsecc.options import CompileOptions
from sparsecc.runtime.session import open_session
from sparsecc.system.files import size_of
from sparsecc.system.scratch import Scratch
from sparsecc.system.temp_folders import temporary_folder
from sparsecc.tasks import compile as pipeline
from sparsecc.tasks.ask_device import require_device
from sparsecc.tasks.stages import MAKING, Work, begin, walk
from sparsecc.verify.evaluate import function_of, score

_COARSE = Budget(pairs=48, seconds=3.0, warmup_seconds=0.2)
_FINE = Budget(pairs=120, seconds=8.0, warmup_seconds=0.3)
_NEARBY = 0.12


def compile_model(request: dict[str, Any], emit: Emit) -> dict[str, Any]:
    """As `compile.compile_model`, with the goals among the options first turned into a ratio.

    GoalError where nothing near the goal can be reached; nothing is written then.
    """
    options = CompileOptions.of(request["options"])
    goal, builds = Goal.of(options), not request.get("dry_run")
    times = (options.measure and builds) or (goal is not None and goal.is_timed)
    require_device(options, Path(request["model"]), times=times, builds=builds)
    if goal is None:
        return pipeline.compile_model(request, emit)
    with temporary_folder("scratch") as folder:
        scratch = Scratch(folder)
        asked = Compilation.opened_at(Path(request["model"]), options, scratch, _scaled(emit, 0.0))
        settled = Workshop.open(asked, goal).settle()
        if settled.excess > REFUSED:
            raise GoalError(settled.notes[-1])
        resolved = options.at_ratio(settled.ratio)
        require_methods(resolved)
        require_passes(resolved)
        compilation = asked.again(resolved, _scaled(emit, 0.5))
        compilation.goal = {
            "asked": goal.asked,
            "trials": [trial.to_json() for trial in settled.trials],
            "notes": settled.notes,
        }
        return pipeline.compiled(compilation, request)


def _scaled(emit: Emit, start: float) -> Emit:
    """Events of one half of the whole."""
    return lambda event: emit({**event, "share": start + 0.5 * float(event.get("share", 0.0))})


@dataclass
class Workshop:
    """Makes models at ratios and measures them against the dense one."""

    compilation: Compilation
    goal: Goal
    made: list[Trial] = field(default_factory=list)
    dense_score: float | None = None
    dense_memory: int | None = None

    @staticmethod
    def open(compilation: Compilation, goal: Goal) -> Workshop:
        """Load the model once to learn at which sizes it runs. UnavailableError where it cannot be timed."""
        options, backend = compilation.options, backend_named(compilation.target.backend)
        if (goal.is_timed or goal.footprint) and not backend.runs_here:
            raise UnavailableError(
                f"target {options.target} cannot be measured here: give --ratio instead of {goal.words()}"
            )
        compilation.emit({"stage": "load", "share": 0.0})
        begin(compilation)
        dense = compilation.dense
        if dense.by_parts:
            raise UnavailableError(f"{dense.too_large()}: {goal.words()} cannot be measured, give --ratio")
        shop = Workshop(compilation, goal)
        if goal.max_drop is not None:
            shop.dense_score = shop.score(compilation, dense.path)
        if goal.footprint is not None:
            shop.dense_memory = shop.memory_of(compilation.file, compilation.feeds[0])
        return shop

    def settle(self) -> Settled:
        """The ratio that meets the goal, or comes nearest."""
        return settle(self.goal, self.attempt, self.compilation.options.ratio)

    def attempt(self, ratio: float) -> Trial:
        """Make and measure a model; where the same slots went before, its figures are taken."""
        number = len(self.made)
        stage = f"trial {number + 1}: ratio {ratio:.3f}"
        self.compilation.emit({"stage": stage, "share": number / (2 * TRIALS)})
        folder = self.compilation.scratch.trial(number)
        folder.mkdir()
        work = self.build(ratio, folder)
        choice = work.decision.choice
        known = next((t for t in self.made if abs(t.removed - choice.removed) < 1e-9), None)
        if known is None:
            sizes = size_of(folder), self.compilation.dense.bytes
            known = self.measured(Trial(ratio, choice.removed, *sizes), work)
        trial = replace(known, ratio=ratio, exhausted=not choice.reached, held=held_back(work.decision))
        self.made.append(trial)
        for file in folder.iterdir():
            file.unlink()
        return trial

    def build(self, ratio: float, folder: Path) -> Work:
        """The artefact at a ratio, in `folder`, made as a compile makes it."""
        options = self.compilation.options.at_ratio(ratio)
        return walk(Work(self.compilation.again(options), folder), MAKING)

    def measured(self, trial: Trial, work: Work) -> Trial:
        """With its speed and score. What is near the goal is measured longer."""
        compilation = work.compilation
        if self.goal.is_timed:
            trial = self.timed(trial, work, _COARSE, 4)
            if abs(self.goal.excess(trial)) < _NEARBY:
                trial = self.timed(trial, work, _FINE, 8)
        if self.goal.footprint is not None:
            feeds = compilation.small_feeds or compilation.feeds[0]
            memory = self.memory_of(work.compiled, feeds)
            trial = replace(trial, memory=memory, dense_memory=self.dense_memory)
        if self.goal.max_drop is not None:
            found = self.score(compilation, work.compiled)
            trial = replace(trial, score=found, dense_score=self.dense_score)
        return trial

    def memory_of(self, model: Path, feeds: Feeds) -> int:
        """Bytes that loading and running a model once adds to a process."""
        return footprint(model, feeds, threads=self.compilation.options.threads).model_memory_bytes

    def timed(self, trial: Trial, work: Work, budget: Budget, rounds: int) -> Trial:
        """With its speed, interleaved with the dense model on the device."""
        compilation, options = work.compilation, work.compilation.options
        told = measure_pair(
            compilation.dense.path,
            work.compiled,
            compilation.feeds[0],
            device=options.device,
            threads=options.threads,
            seed=options.seed,
            rounds=rounds,
            budget=budget,
            after_feeds=compilation.small_feeds,
        )
        ratio = told.ratio()
        interval = (float(np.exp(-ratio.high)), float(np.exp(-ratio.low)))
        dense = told.before.p50
        return replace(trial, speedup=ratio.speedup, ci95=interval, dense_ms=dense, ms=dense / ratio.speedup)

    def score(self, compilation: Compilation, model: Path) -> float:
        """The user's metric of a model that takes the inputs of this compile."""
        assert compilation.options.evaluate is not None
        runner = open_session(model, threads=compilation.options.threads)
        narrowed, function = compilation.narrowed, function_of(compilation.options.evaluate)
        return score(function, lambda feeds: runner.run(narrowed.feeds(feeds)))


def held_back(decision: Decision) -> str:
    """Why no more goes: the share of the work left in layers that stay whole, and the main reason."""
    left = sum(layer["macs_after"] for layer in decision.layers) or 1
    whole = sum(y["macs_after"] for y in decision.layers if y["macs_after"] == y["macs_before"])
    pinned = [group for group in decision.groups if group.pinned is not None and group.params]
    why = f"most pinned weights are at {max(pinned, key=lambda g: g.params).pinned}" if pinned else ""
    share = f"{whole / left:.0%} of the multiply-accumulates left are in layers that stay whole"
    return ", ".join(text for text in (share if whole / left > 0.005 else "", why) if text)
