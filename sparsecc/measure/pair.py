"""Two model files timed side by side where they will run: in this process, or on a device."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sparsecc.devices import Device, open_device
from sparsecc.devices.measure import PairTimes, sample_on
from sparsecc.devices.runner import energy_between, read_energy
from sparsecc.errors import UnavailableError
from sparsecc.measure.fresh_sessions import Start, clock_for, compare_fresh
from sparsecc.measure.interleave import Budget, Comparison, time_alone
from sparsecc.measure.statistics import Times

DEVICE_ROUNDS = 4
"""Rounds on a device: each starts the runner anew, and copies both models over."""

_NANOSECONDS = 1e6
"""In one millisecond."""


def measure_pair(
    before: Path,
    after: Path,
    feeds: Mapping[str, np.ndarray],
    *,
    device: str = "local",
    threads: int = 1,
    seed: int = 0,
    rounds: int = 6,
    budget: Budget | None = None,
    after_feeds: Mapping[str, np.ndarray] | None = None,
) -> Comparison:
    """Interleaved pairs over rounds of fresh sessions, on `device`.

    `after_feeds` are the inputs of `after` where these are smaller than those of `before`; on a device both
    take the same. Raises what the device raises: UnavailableError where it does not answer, InputError where
    a model does not run there.
    """
    budget = budget or Budget(pairs=120, seconds=8.0, warmup_seconds=0.3)
    if device == "local":
        starts = session_start(before, feeds, threads), session_start(after, after_feeds or feeds, threads)
        return compare_fresh(*starts, rounds=rounds, budget=budget, threads=threads, seed=seed)
    if after_feeds is not None:
        raise UnavailableError("models with smaller inputs are not timed on a device: use --no-measure")
    with open_device(device) as there:
        return compare_on(
            there, before, after, feeds, rounds=DEVICE_ROUNDS, pairs=budget.pairs, threads=threads, seed=seed
        )


def time_on(
    device: str, model: Path, feeds: Mapping[str, np.ndarray], *, threads: int = 1
) -> tuple[Times, Times, dict[str, Any]]:
    """(CPU, wall) milliseconds per run of one model on a device, and what the device says of itself.

    `energy_mj`, millijoules a run of the whole processor, is among the facts where the device counts them.
    """
    if device == "local":
        run, counters, begun = session_start(model, feeds, threads)(), read_energy(), time.perf_counter()
        cpu, wall = time_alone(run, budget=Budget(pairs=100, seconds=8))
        spent, seconds = energy_between(counters, read_energy()), time.perf_counter() - begun
        return cpu, wall, _energy(spent, seconds * 1e3 / float(wall.mean()))  # warm-up runs are runs, too
    with open_device(device) as there:
        found = sample_on(there, model, model, feeds, pairs=50, threads=threads)
        cpu, wall = (
            np.concatenate(sides) / _NANOSECONDS
            for sides in ((found.cpu_a, found.cpu_b), (found.wall_a, found.wall_b))
        )
        facts = {"name": there.spec, **found.facts}
        return cpu, wall, {**facts, **_energy(facts.pop("energy_uj", None), len(cpu))}


def _energy(microjoules: Any, runs: float) -> dict[str, float]:
    return {} if microjoules is None else {"energy_mj": microjoules / 1e3 / runs}


def session_start(model: Path, feeds: Mapping[str, np.ndarray], threads: int) -> Start:
    """Makes a fresh ONNX Runtime session of a file, ready to run `feeds`."""
    from sparsecc.runtime.session import open_session

    return lambda: open_session(model, threads=threads).prepared(feeds)


def compare_on(
    device: Device,
    before: Path,
    after: Path,
    feeds: Mapping[str, np.ndarray],
    *,
    rounds: int,
    pairs: int,
    threads: int = 1,
    seed: int = 0,
) -> Comparison:
    """`pairs` pairs in `rounds` rounds on an open device, interleaved there, made in alternating order."""
    total: Comparison | None = None
    for number in range(rounds):
        swapped = number % 2 == 1
        first, second = (after, before) if swapped else (before, after)
        samples = sample_on(
            device,
            first,
            second,
            feeds,
            pairs=max(5, pairs // rounds),
            threads=threads,
            seed=seed * 7919 + number,
        )
        part = _comparison(samples, swapped, threads, seed, device.spec)
        total = part if total is None else total.joined(part)
    assert total is not None
    return total


def _comparison(samples: PairTimes, swapped: bool, threads: int, seed: int, spec: str) -> Comparison:
    a = samples.cpu_a / _NANOSECONDS, samples.wall_a / _NANOSECONDS
    b = samples.cpu_b / _NANOSECONDS, samples.wall_b / _NANOSECONDS
    before, after = (b, a) if swapped else (a, b)
    least = 1 / _NANOSECONDS
    extra = {"device": {"name": spec, **samples.facts}}
    return Comparison(
        np.maximum(before[0], least),
        np.maximum(after[0], least),
        before[1],
        after[1],
        clock_for(threads),
        1,
        threads,
        seed,
        extra,
    )
