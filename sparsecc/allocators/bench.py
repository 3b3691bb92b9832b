"""How far a cut moves the outputs of a model on samples."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from sparsecc.backends.onnxruntime_session import OrtRunner, open_session, session_options
from sparsecc.calibrate.samples import Feeds, Samples
from sparsecc.cost import macs_model
from sparsecc.feed_files import is_fixed
from sparsecc.feeds import input_values
from sparsecc.graph.analysis import Analysis
from sparsecc.verify.prove import write

WORK = 1e13
"""Multiply-accumulates that all runs together may take: some minutes on one core."""
FEWEST, MOST = 8, 128
"""Samples to a run."""


class Bench:
    """Runs whole models over the same samples and compares their outputs with those of the dense one."""

    def __init__(self, model: ir.Model, samples: Samples, scratch: Path, threads: int) -> None:
        self._model = model
        self._samples = samples
        self._file = scratch / "bench" / "model.onnx"
        self._options = session_options(threads=threads, level="basic")
        self._known: dict[float, tuple[list[Feeds], list[Feeds]]] = {}

    @staticmethod
    def for_runs(
        analysis: Analysis, samples: Samples, runs: int, scratch: Path, threads: int
    ) -> Bench | None:
        """With as many samples as so many runs may take; None where these are too few to tell anything."""
        per_sample = macs_model(analysis).total({}) / _batch_of(analysis)
        number = int(min(MOST, WORK / max(runs * per_sample, 1.0)))
        if number < FEWEST:
            return None
        return Bench(analysis.model, samples.first(number), scratch, threads)

    def moved(self, model: ir.Model, share: float = 1.0) -> float:
        """The divergence of a model's outputs, on the leading share of the samples."""
        if share not in self._known:
            feeds = self._leading(share)
            self._known[share] = (feeds, self._outputs(self._model, feeds))
        feeds, wanted = self._known[share]
        return divergence(wanted, self._outputs(model, feeds))

    def _outputs(self, model: ir.Model, batches: Sequence[Feeds]) -> list[Feeds]:
        runner = OrtRunner(open_session(write(model, self._file), self._options), "calibration")
        return [runner.run(feeds) for feeds in batches]

    def _leading(self, share: float) -> list[Feeds]:
        """Whole batches; a part of the last one where the model takes batches of any size."""
        inputs = input_values(self._model)
        free = all(v.shape is not None and len(v.shape) and not is_fixed(v.shape[0]) for v in inputs)
        left, found = max(1, round(share * self._samples.number)), []
        for batch in self._samples.first(left).batches:
            lengths = {len(array) if array.ndim else 1 for array in batch.values()}
            whole = not free or len(lengths) > 1 or max(lengths) <= left
            found.append(batch if whole else {name: array[:left] for name, array in batch.items()})
            left -= max(lengths)
        return found


def divergence(wanted: Sequence[Feeds], found: Sequence[Feeds]) -> float:
    """Squared error relative to variance, averaged over the float outputs; infinite where NaN appear."""
    errors = []
    for name, first in wanted[0].items():
        if first.dtype.kind != "f":
            continue
        a = np.concatenate([o[name].astype(np.float64).ravel() for o in wanted])
        b = np.concatenate([o[name].astype(np.float64).ravel() for o in found])
        if a.shape != b.shape or not np.isfinite(b).all():
            return float("inf")
        errors.append(float(np.mean(np.square(a - b))) / max(float(a.var()), 1e-12))
    return float(np.mean(errors)) if errors else 0.0


def _batch_of(analysis: Analysis) -> int:
    """How many samples the cost model's input sizes hold."""
    shape = next(iter(analysis.shapes.inputs[0].values()), (1,))
    return max(1, shape[0]) if shape else 1
