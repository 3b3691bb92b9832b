"""The latency gate: is a model slower than its baseline? Clock-free checks first, then interleaved timing."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from sparsecc.devices import open_device
from sparsecc.devices.ready import require_ready
from sparsecc.errors import InputError
from sparsecc.gate.checks import Check, clock_free_checks, model_file, same_answers
from sparsecc.gate.config import CHECKS
from sparsecc.loading.private_copy import require_sound
from sparsecc.measure.interleave import Budget, Comparison
from sparsecc.measure.pair import measure_pair
from sparsecc.measure.statistics import LogRatio

Verdict = Literal["OK", "REGRESSION", "INCONCLUSIVE"]
SMALLEST_THRESHOLD = 0.03
"""Two sessions of one model differ by 1.4 % here; below twice that, a verdict cannot be defended."""

LOOKS = 3
"""How often a measurement is looked at before it is given up."""
ROUNDS = 8
"""Rounds of fresh sessions before the first look."""
CONFIDENCE = 1 - 0.05 / LOOKS
"""Of each look's interval, so that all of them together hold 95 times in 100 (Bonferroni)."""


@dataclass(frozen=True)
class GateResult:
    """The verdict and everything it rests on. Ratios are ln(t_current / t_baseline)."""

    name: str
    verdict: Verdict
    reason: str
    max_regression: float
    checks: tuple[Check, ...]
    self_check: LogRatio | None = None
    comparison: Comparison | None = None
    machine: Mapping[str, Any] = field(default_factory=dict)

    @property
    def change(self) -> tuple[float, float, float] | None:
        """(estimate, low, high) of the change of latency: 0.05 is 5 % slower. None when it was not timed."""
        if self.comparison is None:
            return None
        ratio = self.comparison.ratio(confidence=CONFIDENCE)
        return math.expm1(ratio.median), math.expm1(ratio.low), math.expm1(ratio.high)

    def to_json(self) -> dict[str, Any]:
        change = self.change
        return {
            "schema": "sparsecc.gate/1",
            "name": self.name,
            "verdict": self.verdict,
            "reason": self.reason,
            "max_regression": self.max_regression,
            "change": None if change is None else {"estimate": change[0], "ci95": [change[1], change[2]]},
            "checks": [vars(check) for check in self.checks],
            "self_check": None if self.self_check is None else vars(self.self_check),
            "latency": None if self.comparison is None else self.comparison.to_json(),
            "machine": dict(self.machine),
        }


def decide(ratio: LogRatio, max_regression: float) -> Verdict:
    """REGRESSION when surely slower and by more than allowed; OK when surely within; else INCONCLUSIVE.

    An interval that reaches further than the limit to both sides is no proof of being within it, unless all
    of it says faster.
    """
    limit = math.log1p(max_regression)
    if ratio.low > 0 and ratio.median > limit:
        return "REGRESSION"
    narrow = (ratio.high - ratio.low) / 2 <= limit or ratio.high < 0
    return "OK" if ratio.high < limit and narrow else "INCONCLUSIVE"


def gate(
    current: Path,
    baseline: Path,
    *,
    max_regression: float,
    threads: int = 1,
    name: str | None = None,
    budget: Budget | None = None,
    checks: tuple[str, ...] = CHECKS,
    feeds: Mapping[str, np.ndarray] | None = None,
    samples: Sequence[Mapping[str, np.ndarray]] = (),
    min_agreement: float | None = None,
    device: str = "local",
    seed: int = 0,
) -> GateResult:
    """Whether `current` is slower than `baseline` by more than `max_regression` (0.05 is 5 %).

    Both are .onnx or .ort files, or bundle folders. A failed clock-free check is a regression and nothing is
    timed; with `min_agreement`, a share of the answers on `samples` that must be the same is one. Otherwise both are
    timed in pairs, `budget.pairs` of them and up to four times as many; near the limit the machine also has to show,
    on the baseline against itself, that it can resolve `max_regression`. They run on `device`, with all pairs
    interleaved there.
    InputError for models that do not load, differ in their inputs, or a threshold under 3 %.
    """
    if not SMALLEST_THRESHOLD <= max_regression <= 1:
        raise InputError(
            f"--max-regression {max_regression:.6g}: give 0.03 (3 %) to 1 (100 %): less cannot be told from noise"
        )
    budget = budget or Budget(pairs=160, seconds=12.0, warmup_seconds=0.4)
    now, before = model_file(current), model_file(baseline)
    if device != "local":
        with open_device(device) as there:
            require_ready(there, (now, before))
    for path in (now, before):
        require_sound(path)
    result = GateResult(name or current.name, "OK", "", max_regression, (), machine=_machine(threads))
    if checks:
        result = replace(result, checks=clock_free_checks(current, baseline, max_regression, checks))
    feeds = feeds or next(iter(samples), None)
    if min_agreement is not None:
        feeds = feeds or _working_feeds(before, seed)
        compared = same_answers(before, now, samples or [feeds], min_agreement)
        result = replace(result, checks=(*result.checks, compared))
    failed = [check for check in result.checks if not check.ok]
    if failed:
        return replace(result, verdict="REGRESSION", reason=f"{failed[0].detail} (not timed)")
    feeds = feeds or _working_feeds(before, seed)
    result = replace(result, machine={**result.machine, "device": device})
    return _timed(result, before, now, Bench(device, feeds, threads, budget), seed)


def _timed(result: GateResult, before: Path, now: Path, bench: Bench, seed: int) -> GateResult:
    """The verdict by the clock."""
    limit = math.log1p(result.max_regression)
    told = bench.measure(before, now, seed, lambda r: decide(r, result.max_regression) != "INCONCLUSIVE")
    ratio = told.ratio(confidence=CONFIDENCE)
    result = replace(result, verdict=decide(ratio, result.max_regression), comparison=told)
    if result.verdict == "INCONCLUSIVE" or is_decisive(ratio, limit):
        return replace(result, reason=_reason(result))
    alone = bench.measure(before, before, seed + 1, lambda ratio: _within(ratio, limit)).ratio(
        confidence=CONFIDENCE
    )
    result = replace(result, self_check=alone)
    if _within(alone, limit):
        return replace(result, reason=_reason(result))
    spread = math.expm1(max(abs(alone.low), abs(alone.high)))
    reason = f"this machine cannot resolve {result.max_regression:.1%} now: an A/A run spreads {spread:.1%}"
    return replace(result, verdict="INCONCLUSIVE", reason=f"{reason}, and A/B is near the limit")


def is_decisive(ratio: LogRatio, limit: float) -> bool:
    """Whether all of an interval lies further from the limit than two sessions of one model lie apart: then no A/A run
    could turn the verdict."""
    margin = math.log1p(SMALLEST_THRESHOLD)
    return ratio.high < limit - margin or ratio.low > limit + margin


def _within(ratio: LogRatio, limit: float) -> bool:
    return max(abs(ratio.low), abs(ratio.high)) < limit


@dataclass(frozen=True)
class Bench:
    """Where, on what and for how long a gate measures."""

    device: str
    feeds: Mapping[str, np.ndarray]
    threads: int
    budget: Budget

    def measure(self, first: Path, second: Path, seed: int, enough: Callable[[LogRatio], bool]) -> Comparison:
        """Pairs in rounds of fresh sessions, doubled until `enough` holds, at most twice."""
        total: Comparison | None = None
        for look in range(LOOKS):
            factor = 2 ** max(0, look - 1)
            budget, rounds = self.budget, ROUNDS * factor
            one = measure_pair(
                first,
                second,
                self.feeds,
                device=self.device,
                threads=self.threads,
                seed=seed * LOOKS + look,
                rounds=rounds,
                budget=replace(budget, pairs=budget.pairs * factor, seconds=budget.seconds * factor),
            )
            total = one if total is None else total.joined(one)
            if enough(total.ratio(confidence=CONFIDENCE)):
                break
        assert total is not None
        return total


def _reason(result: GateResult) -> str:
    estimate, low, high = result.change or (0.0, 0.0, 0.0)
    word = "slower" if estimate >= 0 else "faster"
    told = f"{abs(estimate):.1%} {word} ({low:+.1%} to {high:+.1%}), {result.max_regression:.1%} allowed"
    return f"could not tell: {told}" if result.verdict == "INCONCLUSIVE" else told


def _working_feeds(model: Path, seed: int) -> dict[str, np.ndarray]:
    """Random inputs with which the baseline runs."""
    from sparsecc.data.random_inputs import random_feeds
    from sparsecc.loading.models import load_ir
    from sparsecc.rules import shapes_of
    from sparsecc.runtime.session import open_session
    from sparsecc.shapes.infer import infer

    if model.suffix == ".ort":
        raise InputError(f"{model.name}: inputs cannot be made up for the ORT format: give them with --data")
    runner, graph = open_session(model), load_ir(model)
    failures: list[InputError] = []

    def runs(sizes: Mapping[str, tuple[int, ...]]) -> bool:
        try:
            runner.run(random_feeds(graph, seed=seed, sizes=sizes))
        except InputError as e:
            failures.append(e)
            return False
        return True

    shapes = infer(graph, shapes_of, runs=runs)
    if not shapes.works:
        failure = failures[0] if failures else None
        raise InputError(f"{model.name}: no random inputs make it run: give some with --data") from failure
    return random_feeds(graph, seed=seed, sizes=shapes.inputs[0])


def _machine(threads: int) -> dict[str, Any]:
    import os
    import platform

    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {"processor": platform.machine(), "cores": os.cpu_count(), "load": load, "threads": threads}
