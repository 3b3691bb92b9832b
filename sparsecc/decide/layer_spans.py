"""Consecutive layers that together turn the residual stream least: found in one pass over the samples.

After the angular distance of "The Unreasonable Ineffectiveness of the Deeper Layers" (Gromov et al., 2024), which
"Self-Data Distillation" (2024) uses: the mean angle between what enters the first layer and what leaves the last.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from sparsecc.allocators.angular import angles_between, channels_of
from sparsecc.data.samples import Feeds
from sparsecc.graph.analysis import Analysis
from sparsecc.graph.residual_blocks import ResidualBlock, follows
from sparsecc.runtime.segments import Walk

Cost = Callable[[Sequence[ResidualBlock]], float]
Span = Sequence[ResidualBlock]


def straightest(analysis: Analysis, spans: Sequence[Span], walk: Walk) -> list[ResidualBlock]:
    """The span with the smallest mean angle over all samples and places; of equal ones the last.

    `walk` holds what enters and leaves every span (`ends`); none where there are no spans.
    """
    angles = [_angle(analysis, span, walk) for span in spans]
    return list(
        min(reversed(list(zip(angles, spans, strict=True))), key=lambda pair: pair[0], default=(0, []))[1]
    )


def ends(spans: Sequence[Span]) -> list[str]:
    """The values that enter and leave the spans."""
    return list(dict.fromkeys(name for span in spans for name in (span[0].entry, span[-1].exit)))


def walked(
    analysis: Analysis, spans: Sequence[Span], samples: Sequence[Feeds], scratch: Path,
    *, threads: int = 1, memory: int = 2 << 30,
) -> Walk:  # fmt: skip
    """One pass over the samples that holds the ends of these spans."""
    wanted = ends(spans)
    walk = Walk(analysis.model, samples, scratch, wanted=wanted, threads=threads, memory=memory)
    for name in sorted(wanted, key=lambda n: walk.made_at.get(n, -1)):
        walk.reach(name)
    return walk


def spans_of(free: Sequence[ResidualBlock], budget: float, cost: Cost, *, overshoot: bool) -> list[Span]:
    """From every layer on, as few layers as use up the budget, or without `overshoot` as many as fit in it.

    Whole runs of layers where none is long enough.
    """
    runs = _runs(free)
    found = [
        span for run in runs for i in range(len(run)) if (span := _from(run[i:], budget, cost, overshoot))
    ]
    return found or (runs if overshoot else [])


def _from(run: Span, budget: float, cost: Cost, overshoot: bool) -> Span:
    lengths = range(1, len(run) + 1)
    if overshoot:
        return next((run[:n] for n in lengths if cost(run[:n]) >= budget), [])
    return next((run[:n] for n in reversed(lengths) if cost(run[:n]) <= budget), [])


def _runs(free: Sequence[ResidualBlock]) -> list[Span]:
    """Layers that follow each other: whole repeats where there are any, else the outermost branches."""
    offered = [b for b in free if len(b.branches) > 1] or list(free)
    outer = [b for b in offered if not any(set(b.nodes) < set(other.nodes) for other in offered)]
    runs: list[list[ResidualBlock]] = []
    for block in outer:
        if runs and follows(runs[-1][-1], block):
            runs[-1].append(block)
        else:
            runs.append([block])
    return list(runs)


def _angle(analysis: Analysis, span: Span, walk: Walk) -> float:
    first, last = span[0], span[-1]
    channels = channels_of(analysis, first.branches[0].entry)
    found = []
    for batch in range(walk.batches):
        before, after = walk.value(first.entry, batch), walk.value(last.exit, batch)
        if before.shape != after.shape:
            return np.inf
        found.append(angles_between(before, after, channels))
    return float(np.concatenate(found).mean())
