"""What is measured of a trial of a search to a goal: its speed beside the dense model, its memory, what it lost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from sparsecc.backends import backend_named
from sparsecc.compilation import Compilation
from sparsecc.cost.device_rates import FLOAT, SPARSE, DeviceRates, rates_for, types_of
from sparsecc.data.samples import Feeds
from sparsecc.decide.goals import Goal, Trial
from sparsecc.loss.judge import TENTH, lowest_agreement, use_of, use_of_text, worst_quality
from sparsecc.measure.footprint import footprint
from sparsecc.measure.interleave import Budget
from sparsecc.measure.pair import measure_pair
from sparsecc.measure.serving import Serving
from sparsecc.measure.throughput import AS_GOOD, batches_of, best_serving
from sparsecc.options import CompileOptions
from sparsecc.runtime.session import open_session
from sparsecc.shapes.dynamic_dims import takes_any_batch
from sparsecc.targets import target_named
from sparsecc.tasks.measure import of_text
from sparsecc.tasks.stages import Work
from sparsecc.verify.evaluate import metric_of, score

_COARSE = Budget(pairs=48, seconds=3.0, warmup_seconds=0.2)
_FINE = Budget(pairs=120, seconds=8.0, warmup_seconds=0.3)
_NEARBY = 0.12


def is_foretold(options: CompileOptions) -> bool:
    """Whether speeds are not timed: the target does not run here, or this machine's times are not its times and no
    device is named, or a table says what they are."""
    target, is_local = target_named(options.target), options.device == "local"
    is_elsewhere = is_local and (options.device_table is not None or not target.is_of_this_machine)
    return is_elsewhere or not backend_named(target.backend).runs_here


@dataclass
class Figures:
    """Measures the trials of a search; of the dense model it knows what the goal needs."""

    compilation: Compilation
    goal: Goal
    dense_score: float | None = None
    dense_memory: int | None = None
    dense_serving: Serving | None = None
    rates: DeviceRates | None = None
    """By what speeds are foretold, where the target does not run here."""

    @staticmethod
    def of(compilation: Compilation, goal: Goal) -> Figures:
        """Measures the dense model first."""
        figures, dense = Figures(compilation, goal), compilation.dense.path
        if compilation.options.evaluate is not None:
            figures.dense_score = metric_score(compilation, dense)
        if goal.footprint is not None:
            figures.dense_memory = figures.memory_of(compilation.file, compilation.timed)
        if goal.is_timed and is_foretold(compilation.options):
            figures.rates = rates_for(compilation.target, compilation.options.device_table)
        elif goal.throughput is not None:
            figures.dense_serving = serving_of(compilation, dense, compilation.timed)
        return figures

    @property
    def times(self) -> bool:
        """Whether trials are timed: for a goal of speed, and where the fastest within limits is wanted."""
        options = self.compilation.options
        runs = options.measure and not is_foretold(options)
        return self.goal.is_timed or (runs and not self.goal.has_target)

    @property
    def judges(self) -> bool:
        """Whether the outputs of trials are judged: on samples, and where all that is wanted is the front on random
        inputs too."""
        return self.compilation.options.samples is not None or not self.goal.asked

    def is_near(self, trial: Trial) -> bool:
        """Whether a trial is so near to the goal that its speed must be known well."""
        return self.times and abs(self.goal.excess(trial)) < _NEARBY

    def measured(self, trial: Trial, work: Work) -> Trial:
        """With its speed, quality and score. What is near the goal is measured longer."""
        compilation = work.compilation
        feeds = compilation.narrow(compilation.timed) or compilation.timed
        if self.dense_serving is not None:
            trial = trial.served(self.dense_serving, serving_of(compilation, work.compiled, feeds))
        elif self.rates is not None:
            trial = replace(self.foretold(self.rates, trial, work), is_fine=True)
        elif self.times:
            trial = self.timed(trial, work, _COARSE, 4)
            if self.is_near(trial):
                trial = replace(self.timed(trial, work, _FINE, 8), is_fine=True)
        if self.goal.footprint is not None:
            memory = self.memory_of(work.compiled, feeds)
            trial = replace(trial, memory=memory, dense_memory=self.dense_memory)
        if self.judges:
            facts = work.probes.close_to_dense(work.backend, work.compiled)
            agreed = lowest_agreement(facts) if facts.get("agreement") else None
            useless = use_of(facts) == "useless"
            trial = replace(trial, quality_db=worst_quality(facts), agreement=agreed, is_useless=useless)
            if text := of_text(compilation, work.backend, work.compiled, work.probes):
                trial = replace(trial, nats=text["after"], is_useless=use_of_text(text) == "useless")
        if self.dense_score is not None:
            found = metric_score(compilation, work.compiled)
            useless = self.dense_score - found > TENTH * abs(self.dense_score)
            trial = replace(trial, score=found, dense_score=self.dense_score, is_useless=useless)
        return trial

    def foretold(self, rates: DeviceRates, trial: Trial, work: Work) -> Trial:
        """With its speed beside the dense model as rates tell it; by those of a table with its time, too, and where a
        rate of samples is asked for with the batch that serves most in one stream."""
        dense, made = products_of(rates, work, trial.dense_bytes)
        if self.goal.throughput is not None:
            any_batch = takes_any_batch(self.compilation.dense.model)
            batches = batches_of(self.compilation.timed) if any_batch else (1,)
            return trial.served(dense.serving(rates, batches), made.serving(rates, batches))
        before, after = dense.seconds(rates), made.seconds(rates)
        trial = replace(trial, speedup=before / after)
        return replace(trial, dense_ms=1e3 * before, ms=1e3 * after) if rates.is_measured else trial

    def held_back(self, work: Work, dense_bytes: int) -> str:
        """What takes most of the time that is foretold, where that is no work, which removal would save; "" else."""
        if self.rates is None:
            return ""
        made = products_of(self.rates, work, dense_bytes)[1]
        parts = self.rates.parts(made.rows, made.weights)
        most = max(parts, key=lambda part: parts[part])
        share = parts[most] / (math.fsum(parts.values()) or 1.0)
        return "" if most == "multiply-accumulates" else f"{share:.0%} of its time there is {most}"

    def memory_of(self, model: Path, feeds: Feeds) -> int:
        """Bytes that loading and running a model once adds to a process."""
        return footprint(model, feeds, threads=self.compilation.options.threads).model_memory_bytes

    def timed(self, trial: Trial, work: Work, budget: Budget, rounds: int) -> Trial:
        """With its speed, interleaved with the dense model on the device."""
        compilation, options = work.compilation, work.compilation.options
        told = measure_pair(
            compilation.dense.path,
            work.compiled,
            compilation.timed,
            device=options.device,
            threads=options.threads,
            seed=options.seed,
            rounds=rounds,
            budget=budget,
            after_feeds=compilation.narrow(compilation.timed),
        )
        ratio = told.ratio()
        interval = (float(np.exp(-ratio.high)), float(np.exp(-ratio.low)))
        dense = told.before.p50
        return replace(trial, speedup=ratio.speedup, ci95=interval, dense_ms=dense, ms=dense / ratio.speedup)


@dataclass(frozen=True)
class Products:
    """Of one sample: (type, multiply-accumulates) of each product of a model; the bytes of its weights in float."""

    rows: Sequence[tuple[str, float]]
    weights: float

    def seconds(self, rates: DeviceRates, batch: int = 1) -> float:
        """Of a run of so many samples."""
        return rates.seconds([(kind, batch * macs) for kind, macs in self.rows], self.weights)

    def serving(self, rates: DeviceRates, batches: Sequence[int]) -> Serving:
        """How it serves most in one stream, in the smallest batch that is as good."""
        served = [Serving(batch / self.seconds(rates, batch), batch, 1) for batch in batches]
        most = max(one.rate for one in served)
        return next(one for one in served if one.rate >= AS_GOOD * most)


def products_of(rates: DeviceRates, work: Work, dense_bytes: int) -> tuple[Products, Products]:
    """Those of the dense model, whose weights take so many bytes as they came, and of one that was made."""
    rows, params = work.decision.layers, work.decision.costs
    left = params["after"]["params"] / (params["before"]["params"] or 1)
    models = {"before": work.compilation.dense.model, "after": work.analysis.model}
    found = {}
    for side, model in models.items():
        types, zeroed = types_of(model), patterned(work) if side == "after" else frozenset[str]()
        found[side] = [
            (types.get(name, FLOAT) + (SPARSE if name in zeroed else ""), float(row[f"macs_{side}"]))
            for row in rows
            for name in [row["name"]]
        ]
    in_float = dense_bytes / rates.share(found["before"])
    return Products(found["before"], in_float), Products(found["after"], in_float * left)


def patterned(work: Work) -> frozenset[str]:
    """The layers that a pass gave two zeros in four weights."""
    facts = [record.facts or {} for record in work.compilation.records]
    return frozenset(name for row in facts if row.get("pattern") == "2:4" for name in row["layers"])


def serving_of(compilation: Compilation, model: Path, feeds: Feeds) -> Serving:
    """How a model that takes the inputs of this compile serves most samples a second."""
    any_batch = takes_any_batch(compilation.dense.model)
    return best_serving(model, feeds, any_batch=any_batch, threads=compilation.options.threads)


def metric_score(compilation: Compilation, model: Path) -> float:
    """The user's metric of a model that takes the inputs of this compile."""
    assert compilation.options.evaluate is not None
    runner = open_session(model, threads=compilation.options.threads)
    narrowed, function = compilation.narrowed, metric_of(compilation)
    return score(function, lambda feeds: runner.run(narrowed.feeds(feeds)))
