"""How far a cut moves the outputs of a model on samples."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import onnx_ir as ir

from sparsecc.cost.model import macs_model
from sparsecc.data.samples import Feeds, Samples
from sparsecc.graph.analysis import Analysis
from sparsecc.ir.subgraphs import has_body
from sparsecc.loss.measure import Reference
from sparsecc.loss.parts import Part, parts_of_outputs
from sparsecc.reference.pruned_io import Narrowed
from sparsecc.runtime.segments import Walk
from sparsecc.runtime.session import open_graph
from sparsecc.shapes.dynamic_dims import takes_any_batch

WORK = 1e13
"""Multiply-accumulates that all runs together may take: some minutes on one core."""
FEWEST, MOST = 8, 128
"""Samples to a run."""


class Bench:
    """Runs whole models over the same samples and compares their outputs with those of the dense one."""

    def __init__(
        self, model: ir.Model, samples: Samples, scratch: Path, threads: int, parts: Sequence[Part] = ()
    ) -> None:
        self._model = model
        self._parts = parts
        self._samples = samples
        self._scratch = scratch
        self._threads = threads
        self._known: dict[float, tuple[list[Feeds], Reference]] = {}

    @staticmethod
    def for_runs(
        analysis: Analysis, samples: Samples, runs: float, scratch: Path, threads: int, work: float = WORK
    ) -> Bench | None:
        """With as many samples as so many runs may take within `work`; None where these are too few."""
        chosen = affordable(analysis, samples, runs, MOST, work)
        return (
            None
            if chosen is None
            else Bench(analysis.model, chosen, scratch, threads, parts_of_outputs(analysis))
        )

    def moved(self, model: ir.Model, share: float = 1.0, smaller: Narrowed | None = None) -> float:
        """The loss of a model's outputs, its parts alike, on the leading share of the samples.

        `smaller` says which slots of the inputs the model has lost.
        """
        feeds, reference = self._dense(share)
        own = feeds if smaller is None else [smaller.feeds(one) for one in feeds]
        return reference.loss(self._outputs(model, own))

    def branched(self, variants: Sequence[ir.Model]) -> list[float]:
        """As `moved`, of variants that are alike but for constants, run from where they first differ from the model,
        in one session: of many, those that differ early come first."""
        variant, nodes = variants[0], list(variants[0].graph)
        if not all(_is_twin(variant, other) for other in variants[1:]):
            return [self.branched([one])[0] for one in variants]
        start = self.start_of(variant)
        if start < self._walk.position:
            return [self.moved(one) for one in variants]
        outputs = {value.name for value in variant.graph.outputs}
        made = [v.name or "" for node in nodes[start:] for v in node.outputs if v.name in outputs]
        if not made:
            return [0.0] * len(variants)
        self._walk.advance(start)
        _, reference = self._dense(1.0)
        own = _differing(variants) if len(variants) > 1 else [{}]
        batches = list(self._walk.branch(variant, nodes[start:], made, own, "all"))
        return [
            reference.loss([{**w, **found[i]} for w, found in zip(reference.outputs, batches, strict=True)])
            for i in range(len(variants))
        ]

    def start_of(self, variant: ir.Model) -> int:
        """How many nodes a variant of the model shares with it before the first that differs, or may do so."""
        pairs = enumerate(zip(self._model.graph, variant.graph, strict=False))
        differ = (i for i, (ours, other) in pairs if has_body(other) or not _alike(ours, other))
        return next(differ, len(self._model.graph))

    @cached_property
    def _walk(self) -> Walk:
        feeds, _ = self._dense(1.0)
        return Walk(self._model, feeds, self._scratch, threads=self._threads)

    def _dense(self, share: float) -> tuple[list[Feeds], Reference]:
        """Feeds, and what the model makes of them."""
        if share not in self._known:
            feeds = self._leading(share)
            self._known[share] = (feeds, Reference(self._outputs(self._model, feeds), self._parts))
        return self._known[share]

    def _outputs(self, model: ir.Model, batches: Sequence[Feeds]) -> list[Feeds]:
        runner = open_graph(model, threads=self._threads)
        return [runner.run(feeds) for feeds in batches]

    def _leading(self, share: float) -> list[Feeds]:
        """Whole batches; a part of the last one where the model takes batches of any size."""
        number = max(1, round(share * self._samples.number))
        return list(self._samples.leading(number, whole_batches=not takes_any_batch(self._model)).batches)


def affordable(
    analysis: Analysis, samples: Samples, runs: float, most: int, work: float = WORK
) -> Samples | None:
    """As many of the samples as so many runs of the dense model may take within `work`, or FEWEST where these take no
    more than WORK; None where they do."""
    per_sample = runs * macs_of_sample(macs_model(analysis).total({}), analysis.shapes.inputs[0], samples)
    if FEWEST * per_sample > WORK:
        return None
    number = max(FEWEST, int(min(most, work / max(per_sample, 1.0))))
    return samples.leading(number, whole_batches=not takes_any_batch(analysis.model))


def _is_twin(model: ir.Model, other: ir.Model) -> bool:
    """Whether two models have the same nodes, which read and make values of the same names."""
    pairs = zip(model.graph, other.graph, strict=False)
    return len(model.graph) == len(other.graph) and all(
        (a.op_type, a.domain) == (b.op_type, b.domain) and not has_body(b) and _alike(a, b) for a, b in pairs
    )


def _differing(twins: Sequence[ir.Model]) -> list[Feeds]:
    """Of each, the constants in which they differ."""
    tensors = [{n: v.const_value for n, v in twin.graph.initializers.items()} for twin in twins]
    names = [n for n, first in tensors[0].items() if any(other[n] is not first for other in tensors[1:])]
    return [{n: t.numpy() for n in names if (t := one[n]) is not None} for one in tensors]


def _alike(ours: ir.Node, other: ir.Node) -> bool:
    """Whether a node of a variant reads and makes values of the same names."""
    names = [[v and v.name for v in (*node.inputs, *node.outputs)] for node in (ours, other)]
    return names[0] == names[1]


def macs_of_sample(macs: float, sizes: Mapping[str, tuple[int, ...]], samples: Samples) -> float:
    """Multiply-accumulates of a sample, the mean of all, of a model that takes `macs` at these sizes of its inputs.

    In proportion to the elements of the first input: lines of text, sounds and pictures may be of any length.
    """
    name, shape = next(iter(sizes.items()), ("", (1,)))
    arrays = [batch[name] for batch in samples.batches if name in batch]
    if not arrays or not math.prod(shape):
        return macs / max(1, shape[0] if shape else 1)
    return macs * sum(array.size for array in arrays) / max(1, samples.number) / math.prod(shape)
