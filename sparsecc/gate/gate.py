"""The latency gate: is a model slower than its baseline? Clock-free checks first, then interleaved timing."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from sparsecc.bundle import Bundle
from sparsecc.devices import open_device
from sparsecc.devices.ready import require_ready
from sparsecc.errors import InputError
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
class Check:
    """A check that needs no clock: a number before and after, and whether it stayed within bounds."""

    name: str
    before: float | None
    after: float | None
    ok: bool
    detail: str


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
    device: str = "local",
    seed: int = 0,
) -> GateResult:
    """Whether `current` is slower than `baseline` by more than `max_regression` (0.05 is 5 %).

    Both are .onnx or .ort files, or bundle folders. A failed clock-free check is a regression and nothing is
    timed. Otherwise the machine first has to show, on the baseline against itself, that it can resolve
    `max_regression`; then both are timed in pairs, `budget.pairs` of them and up to four times as many.
    They run on `device`, with all pairs interleaved there.
    InputError for models that do not load, differ in their inputs, or a threshold under 3 %.
    """
    if not SMALLEST_THRESHOLD <= max_regression < 10:
        raise InputError(
            f"--max-regression {max_regression:.1%}: give 3 % to 1000 %: less cannot be told from noise"
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
    failed = [check for check in result.checks if not check.ok]
    if failed:
        return replace(result, verdict="REGRESSION", reason=f"{failed[0].detail} (not timed)")
    feeds = feeds or _working_feeds(before, seed)
    result = replace(result, machine={**result.machine, "device": device})
    return _timed(result, before, now, Bench(device, feeds, threads, budget), seed)


def _timed(result: GateResult, before: Path, now: Path, bench: Bench, seed: int) -> GateResult:
    """The verdict by the clock."""
    limit = math.log1p(result.max_regression)
    alone = bench.measure(before, before, seed + 1, lambda ratio: _within(ratio, limit)).ratio(
        confidence=CONFIDENCE
    )
    result = replace(result, self_check=alone)
    if not _within(alone, limit):
        spread = math.expm1(max(abs(alone.low), abs(alone.high)))
        reason = (
            f"this machine cannot resolve {result.max_regression:.1%} now: an A/A run spreads {spread:.1%}"
        )
        return replace(result, verdict="INCONCLUSIVE", reason=reason)
    told = bench.measure(before, now, seed, lambda r: decide(r, result.max_regression) != "INCONCLUSIVE")
    verdict = decide(told.ratio(confidence=CONFIDENCE), result.max_regression)
    done = replace(result, verdict=verdict, comparison=told)
    return replace(done, reason=_reason(done))


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


def model_file(path: Path) -> Path:
    """The model to load: the file itself, or that of a bundle folder. InputError when there is none."""
    if path.is_dir():
        for name in ("model.onnx", "model.ort"):
            if (path / name).is_file():
                return path / name
        raise InputError(f"{path}: no model.onnx in this folder: give a bundle or an ONNX file")
    if not path.is_file():
        raise InputError(f"{path}: no such file: give an ONNX file or a bundle folder")
    return path


def clock_free_checks(
    current: Path, baseline: Path, max_regression: float, names: tuple[str, ...] = CHECKS
) -> tuple[Check, ...]:
    """Integer kernels lost, multiply-accumulates and size grown, channels out of step."""
    unknown = sorted(set(names) - set(CHECKS))
    if unknown:
        raise InputError(f"unknown gate check '{unknown[0]}': checks are {', '.join(CHECKS)}")
    now, before = model_file(current), model_file(baseline)
    found: list[Check] = []
    if {"kernels", "channels"} & set(names):
        from sparsecc.runtime.kernel_census import census

        was, is_ = census(before), census(now)
        kernels = _fewer("kernels", sum(was["integer"].values()), sum(is_["integer"].values()))
        outside = [sum(conv["effect"] == "outside" for conv in c["misaligned"]) for c in (was, is_)]
        channels = _more("channels", outside[0], outside[1], 0.0, "convolutions outside the blocked layout")
        found += [check for check in (kernels, channels) if check.name in names]
    if "macs" in names:
        found.append(_more("macs", _macs(baseline), _macs(current), max_regression, "multiply-accumulates"))
    if "size" in names:
        found.append(_more("size", _bytes(before), _bytes(now), max_regression, "bytes of model"))
    return tuple(found)


def _fewer(name: str, before: int, after: int) -> Check:
    ok = after >= before
    return Check(name, before, after, ok, f"integer kernels: {before} before, {after} now")


def _more(name: str, before: float | None, after: float | None, allowed: float, what: str) -> Check:
    if before is None or after is None:
        return Check(name, before, after, True, f"{what}: not recorded on both sides")
    return Check(
        name,
        before,
        after,
        after <= before * (1 + allowed),
        f"{what}: {before:,.0f} before, {after:,.0f} now",
    )


def _macs(path: Path) -> float | None:
    """The multiply-accumulates that a bundle's report.json records for the compiled model."""
    after: Any = None
    if (path / "report.json").is_file():
        with suppress(InputError):
            after = Bundle(path).report.get("after")
    macs = after.get("macs") if isinstance(after, dict) else None
    is_count = isinstance(macs, int | float) and not isinstance(macs, bool) and 0 <= macs < math.inf
    return float(macs) if is_count and macs is not None else None


def _bytes(model: Path) -> int:
    """The size of a model file and of the weights beside it."""
    data = model.with_name(f"{model.name}.data")
    return model.stat().st_size + (data.stat().st_size if data.is_file() else 0)


def _working_feeds(model: Path, seed: int) -> dict[str, np.ndarray]:
    """Random inputs with which the baseline runs."""
    from sparsecc.data.random_inputs import random_feeds
    from sparsecc.loading.models import load_ir
    from sparsecc.runtime.session import open_session
    from sparsecc.shapes.dynamic_dims import candidate_dims

    if model.suffix == ".ort":
        raise InputError(f"{model.name}: inputs cannot be made up for the ORT format: give them with --data")
    runner, graph = open_session(model), load_ir(model)
    failure: InputError | None = None
    for dims in candidate_dims(graph):
        feeds = random_feeds(graph, seed=seed, dynamic=dims)
        try:
            runner.run(feeds)
        except InputError as e:
            failure = e
            continue
        return feeds
    raise InputError(f"{model.name}: no random inputs make it run: give some with --data") from failure


def _machine(threads: int) -> dict[str, Any]:
    import os
    import platform

    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {"processor": platform.machine(), "cores": os.cpu_count(), "load": load, "threads": threads}
