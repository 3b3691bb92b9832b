"""How many samples a second a model serves on this machine, in which batch and by how many callers at once."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from sparsecc.measure.serving import Serving
from sparsecc.runtime.session import open_session

Feeds = Mapping[str, np.ndarray]

BATCHES = (1, 2, 4, 8, 16, 32)
LARGEST = 256 << 20
"""Bytes of the inputs of a batch that is tried."""
SECONDS = 0.25
"""How long each way of serving is tried."""
AGAIN = 7
"""How often the best is measured once more; the median counts."""
AS_GOOD = 0.97
"""The share of the highest rate from which on a smaller batch and fewer callers are taken."""


def best_serving(model: Path, feeds: Feeds, *, any_batch: bool, threads: int = 1) -> Serving:
    """The way that serves most, the smallest batch and the fewest streams of those AS_GOOD.

    `feeds` are inputs of a run; where the model takes `any_batch`, their first axes count samples. Streams are such
    as this machine has processors for, with `threads` each.
    """
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    streams = [n for n in (1, 2, 4, 8, 16, 32, 64) if n == 1 or n * threads <= processors]
    runner, found, runs = (
        open_session(model, threads=threads),
        list[Serving](),
        dict[int, Callable[[], object]](),
    )
    for batch in batches_of(feeds) if any_batch else (samples_in(feeds),):
        run = runs[batch] = runner.prepared(batched(feeds, batch) if any_batch else feeds)
        found += [Serving(_rate(run, batch, n, threads), batch, n) for n in streams]
    most = max(one.rate for one in found)
    best = min((one for one in found if one.rate >= AS_GOOD * most), key=lambda one: one.batch * one.streams)
    rates = [_rate(runs[best.batch], best.batch, best.streams, threads) for _ in range(AGAIN)]
    return replace(best, rate=float(np.median(rates)))


def samples_in(feeds: Feeds) -> int:
    """The length of the first axis where all inputs share it; 1 else."""
    lengths = {array.shape[0] if array.ndim else 1 for array in feeds.values()}
    return lengths.pop() if len(lengths) == 1 else 1


def batches_of(feeds: Feeds) -> Sequence[int]:
    """Batches of these inputs that are not too large."""
    each = sum(array.nbytes / max(len(array), 1) for array in feeds.values())
    return [n for n in BATCHES if n == 1 or n * each <= LARGEST]


def batched(feeds: Feeds, number: int) -> dict[str, np.ndarray]:
    """The samples of these inputs over and over, so many in all."""
    return {name: np.take(a, np.arange(number) % len(a), axis=0) for name, a in feeds.items()}


def _rate(run: Callable[[], object], batch: int, streams: int, threads: int) -> float:
    """Samples a second. Streams of one thread each are counted by processor time, which other processes hardly
    disturb: what they would serve with a processor to themselves."""
    counts, begin = [0] * streams, threading.Barrier(streams + 1)

    def serve(number: int) -> None:
        begin.wait()
        end = time.perf_counter() + SECONDS
        while not counts[number] or time.perf_counter() < end:
            run()
            counts[number] += 1

    callers = [threading.Thread(target=serve, args=(number,), daemon=True) for number in range(streams)]
    for caller in callers:
        caller.start()
    wall, processor = time.perf_counter(), time.process_time()
    begin.wait()
    for caller in callers:
        caller.join()
    taken = (time.process_time() - processor) / streams if threads == 1 else time.perf_counter() - wall
    return sum(counts) * batch / max(taken, 1e-9)
