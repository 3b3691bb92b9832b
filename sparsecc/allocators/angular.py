"""Shares by how far a block turns the values that pass by it.

The importance of a block is the angle between what enters and what leaves it (the coarse part of "CFSP", Wang et
al., 2025); that a block gives up the more the less it turns is "Adapt-Pruner" (Wang et al., 2025), whose many small
steps, each a share of what is left, are taken here as one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from sparsecc.allocators.base import Problem, Selection, by_shares
from sparsecc.axes.algebra import Atom, atoms_of
from sparsecc.data.samples import Samples
from sparsecc.graph.analysis import Analysis, prunable_atoms
from sparsecc.graph.groups import Group
from sparsecc.graph.residual_blocks import ResidualBlock, find_blocks
from sparsecc.runtime.segments import Walk

STRENGTH = 0.5
"""The block that turns most keeps the mean share to the power of 1 - STRENGTH, at most."""
SAMPLES = 64
"""Samples on which angles are taken."""


def angular(problem: Problem) -> Selection:
    """Groups in blocks that hardly turn what passes by give up more; the geometric mean of the shares is even."""
    turned = [c.turn for c in problem.candidates if c.turn is not None]
    assert len(turned) == len(problem.candidates)
    powers = 1 - STRENGTH * centred(np.array(turned))
    return by_shares(problem, lambda t: t**powers)


def centred(turns: np.ndarray) -> np.ndarray:
    """With sum 0, and the farthest from it at 1 or -1; zeros where all are alike."""
    around = turns - turns.mean() if turns.size else turns
    farthest = np.abs(around).max(initial=0.0)
    return around / farthest if farthest > 1e-12 else np.zeros_like(around)


def turns(
    analysis: Analysis, groups: Sequence[Group], samples: Samples, scratch: Path, threads: int, memory: int
) -> dict[Atom, float]:
    """How far the innermost block around each group turns its input, in half turns; their mean outside blocks."""
    everywhere = find_blocks(analysis)
    homes = {group.atom: _home(group, everywhere) for group in groups}
    blocks = {block.id: block for block in homes.values() if block is not None}
    ends = [name for block in blocks.values() for name in (block.entry, block.exit)]
    few = samples.first(SAMPLES)
    walk = Walk(analysis.model, few.batches, scratch, wanted=ends, threads=threads, memory=memory)
    found = {}
    for block in sorted(blocks.values(), key=lambda b: walk.made_at[b.exit]):
        walk.reach(block.exit)
        channels = channels_of(analysis, block.branches[0].entry)
        angles = [
            angles_between(walk.value(block.entry, i), walk.value(block.exit, i), channels)
            for i in range(walk.batches)
        ]
        found[block.id] = float(np.concatenate(angles).mean())
    inside = {atom: found[block.id] for atom, block in homes.items() if block is not None}
    mean = float(np.mean(list(inside.values()))) if inside else 0.0
    return {group.atom: inside.get(group.atom, mean) for group in groups}


def angles_between(before: np.ndarray, after: np.ndarray, channels: Sequence[int]) -> np.ndarray:
    """The angle between the channels at every place, in half turns: 0 where nothing changes but the size."""
    a, b = (_as_rows(array, channels) for array in (before, after))
    sizes = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosines = np.einsum("ij,ij->i", a, b) / np.where(sizes > 0, sizes, 1.0)
    cosines = np.where(sizes > 0, cosines, 1.0)
    return np.asarray(np.arccos(np.clip(cosines, -1.0, 1.0)) / np.pi)


def _as_rows(array: np.ndarray, channels: Sequence[int]) -> np.ndarray:
    """(places, channels), float64."""
    last = np.moveaxis(array.astype(np.float64), channels, range(-len(channels), 0))
    return last.reshape(-1, int(np.prod(last.shape[-len(channels) :])))


def channels_of(analysis: Analysis, value: ir.Value) -> list[int]:
    """The positions of the axes that weights have slots of; all but the first where there are none."""
    owners = prunable_atoms(analysis).keys()
    axes = analysis.record.axes[value]
    found = [i for i, axis in enumerate(axes) if not owners.isdisjoint(atoms_of(axis))]
    return found or list(range(min(1, len(axes) - 1), len(axes)))


def _home(group: Group, blocks: Sequence[ResidualBlock]) -> ResidualBlock | None:
    """The smallest block that reads all weights of a group."""
    weights = {name for name, _ in group.members}
    around = [b for b in blocks if weights <= {v.name for n in b.nodes for v in n.inputs if v is not None}]
    return min(around, key=lambda b: len(b.nodes), default=None)
