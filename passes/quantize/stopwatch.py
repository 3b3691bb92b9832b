"""Whole models timed beside each other where the target runs on this machine."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from pathlib import Path

import onnx_ir as ir

from sparsecc.compilation import Compilation
from sparsecc.ir.save import write
from sparsecc.measure.fresh_sessions import compare_fresh
from sparsecc.measure.interleave import Budget
from sparsecc.measure.pair import session_start
from sparsecc.measure.statistics import LogRatio
from sparsecc.runtime.runner import Feeds

ROUNDS = 5
_BRIEF = Budget(pairs=50, seconds=1.5, warmup_seconds=0.15)
_LONG = Budget(pairs=90, seconds=4.0, warmup_seconds=0.3)


def is_timed(compilation: Compilation) -> bool:
    """Whether this machine stands for the device, and times may be taken, of inputs that there are."""
    asked, has_inputs = compilation.options, bool(compilation.has_begun or compilation.pass_feeds)
    return compilation.target.timed_here and asked.measure and asked.device == "local" and has_inputs


@dataclass
class Stopwatch:
    """Times files of models interleaved, over rounds of fresh sessions, on the inputs that results are timed on.

    `in_float` is the file of the model that all are held against.
    """

    compilation: Compilation
    model: ir.Model
    in_float: Path = field(init=False)
    _feeds: Feeds = field(init=False)

    def __post_init__(self) -> None:
        given = self.compilation
        self._feeds = (given.narrow(given.timed) or given.timed) if given.has_begun else given.pass_feeds[0]
        self._folder = self.compilation.scratch.timed
        self._numbers = itertools.count()
        self.in_float = self.file(self.model)

    def file(self, model: ir.Model) -> Path:
        """Where a model lies to be timed."""
        return write(model, self._folder / str(next(self._numbers)) / "model.onnx")

    def ratio(self, before: Path, after: Path, *, brief: bool = True) -> LogRatio:
        """ln of the time of the second to that of the first, with a 95 % interval over the rounds."""
        threads = self.compilation.options.threads
        starts = session_start(before, self._feeds, threads), session_start(after, self._feeds, threads)
        budget = _BRIEF if brief else _LONG
        seed = self.compilation.options.seed
        return compare_fresh(*starts, rounds=ROUNDS, budget=budget, threads=threads, seed=seed).ratio()
