"""The parts that an output consists of: pieces of a Concat that makes it, and channels of unlike scale.

Boxes in pixels beside scores in 0..1 are two answers in one tensor. Judged as one, the boxes' energy hides every
error of the scores.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise, product

import numpy as np
import onnx_ir as ir

from sparsecc.axes.algebra import Axis, parts_of
from sparsecc.axes.sizes import at, is_static
from sparsecc.graph.analysis import Analysis
from sparsecc.graph.caches import caches
from sparsecc.rules import Trait, traits_of

PIECES = 16
"""Parts of one output that are looked at apart; an axis of more pieces is left whole."""

UNLIKE = 10.0
"""Between the standard deviations of neighbouring channels: from here on they are of unlike scale."""

WIDEST = 4096
"""Channels of an axis that is looked at for unlike scales."""

RUNS = 6
"""Stretches of channels that an axis may fall into by scale: more is no layout of answers."""


@dataclass(frozen=True)
class Part:
    """A block of one output: (axis, first slot, one past the last) for every axis that is cut."""

    output: str
    ranges: tuple[tuple[int, int, int], ...] = ()
    layer: str = field(default="", compare=False)
    """The last layer that multiplies by weights before it, "" where that is not one."""
    source: str = field(default="", compare=False)
    """The operator that makes its numbers, views of them passed by; "" where that is not one."""
    places: tuple[int, ...] = field(default=(), compare=False)
    """Axes after the first whose length follows that of the input: they count places, and no channels."""

    @property
    def name(self) -> str:
        """As numpy would index it: 'out[:, 4:84]'."""
        if not self.ranges:
            return self.output
        cut = {axis: f"{start}:{stop}" for axis, start, stop in self.ranges}
        return f"{self.output}[{', '.join(cut.get(axis, ':') for axis in range(max(cut) + 1))}]"

    def of(self, array: np.ndarray) -> np.ndarray:
        """The part's block of its output, a view."""
        index = [slice(None)] * array.ndim
        for axis, start, stop in self.ranges:
            index[axis] = slice(start, stop)
        return array[tuple(index)]

    def cut(self, axis: int, start: int, stop: int) -> Part:
        """A block of this block: slots `start` to `stop` of what it has of `axis`."""
        first = next((low for other, low, _ in self.ranges if other == axis), 0)
        others = [known for known in self.ranges if known[0] != axis]
        ranges = tuple(sorted([*others, (axis, first + start, first + stop)]))
        return replace(self, ranges=ranges)


def parts_of_outputs(analysis: Analysis) -> tuple[Part, ...]:
    """The parts of every output of a model, from its axes: where one is a concatenation, its pieces.

    Caches are no answers: what is wrong in them shows in what later calls make of it.
    """
    found: list[Part] = []
    outputs = list(analysis.model.graph.outputs)
    kept = {cache.present for cache in caches(analysis.model)}
    for value in [value for value in outputs if value not in kept] or outputs:
        axes = analysis.record.axes.get(value, [])
        places = tuple(number for number, axis in enumerate(axes) if number and _follows_input(axis))
        whole = Part(value.name or "", places=places)
        cuts = [list(_pieces(number, axis)) for number, axis in enumerate(axes)]
        cuts = [pieces for pieces in cuts if len(pieces) > 1]
        while cuts and np.prod([len(pieces) for pieces in cuts]) > PIECES:
            cuts.remove(max(cuts, key=len))
        parts = [replace(whole, ranges=ranges) for ranges in product(*cuts)]
        made = pieces_of(value) if len(cuts) == 1 else [value]
        found += map(_traced, parts, made, [value] * len(parts)) if len(made) == len(parts) else parts
    return tuple(found)


def pieces_of(value: ir.Value) -> list[ir.Value]:
    """What a value is put together from, in order: operands of the Concat that makes it, and of those before it."""
    node = source_of(value, Trait.KEEPS_SIZE | Trait.SLOTWISE)
    if node is None or node.op_type != "Concat":
        return [value]
    return [piece for operand in node.inputs if operand is not None for piece in pieces_of(operand)]


def source_of(value: ir.Value, passed: Trait = Trait.KEEPS_SIZE) -> ir.Node | None:
    """The operator that makes a value's numbers, those passed by that only `passed`; None for inputs and constants."""
    node = value.producer()
    while node is not None and traits_of(node) & passed and node.inputs[0] is not None:
        node = _data(node).producer()
    return node


def _data(node: ir.Node) -> ir.Value:
    """The operand that is no constant, the first of several."""
    operands = [operand for operand in node.inputs if operand is not None]
    return next((operand for operand in operands if operand.const_value is None), operands[0])


def _traced(part: Part, value: ir.Value, output: ir.Value) -> Part:
    """A part with what makes it: `value` is its piece of `output`."""
    last = source_of(output)
    source = source_of(value) if last is not None and last.op_type == "Concat" else last
    layer = source_of(value, Trait.KEEPS_SIZE | Trait.SLOTWISE)
    has_weights = layer is not None and traits_of(layer) & Trait.COMPUTES
    return replace(
        part,
        layer=(layer.name or "") if layer is not None and has_weights else "",
        source=source.op_type if source is not None else "",
    )


def _follows_input(axis: Axis) -> bool:
    return any(not is_static(piece.size) for piece in parts_of(axis))


def _pieces(number: int, axis: Axis) -> Iterator[tuple[int, int, int]]:
    """The ranges of an axis's pieces; nothing where their sizes are not known."""
    pieces = parts_of(axis)
    if number == 0 or len(pieces) > PIECES or not all(is_static(piece.size) for piece in pieces):
        return
    start = 0
    for piece in pieces:
        stop = start + at(piece.size, 0)
        yield (number, start, stop)
        start = stop


def by_scale(part: Part, outputs: Sequence[Mapping[str, np.ndarray]]) -> list[Part]:
    """A part, cut where its channels are of unlike scale on these outputs; itself where they are not."""
    blocks = [part.of(np.asarray(batch[part.output])) for batch in outputs]
    shapes = {block.shape[1:] for block in blocks}
    if len(shapes) != 1:
        return [part]
    best: list[tuple[int, int]] = []
    chosen = 0
    for axis in range(1, blocks[0].ndim):
        if axis not in part.places and 2 <= blocks[0].shape[axis] <= WIDEST:
            found = stretches(_deviations(blocks, axis))
            if len(found) > len(best):
                best, chosen = found, axis
    return [part.cut(chosen, *stretch) for stretch in best] if len(best) > 1 else [part]


def _deviations(blocks: Sequence[np.ndarray], axis: int) -> np.ndarray:
    """The standard deviation of every channel of an axis over all else."""
    others = tuple(other for other in range(blocks[0].ndim) if other != axis)
    with np.errstate(all="ignore"):
        count = sum(block.size // block.shape[axis] for block in blocks)
        mean = sum(block.sum(axis=others, dtype=np.float64) for block in blocks) / max(count, 1)
        shape = [-1 if other == axis else 1 for other in range(blocks[0].ndim)]
        square = sum(
            np.square(np.subtract(block, mean.reshape(shape), dtype=np.float64)).sum(axis=others)
            for block in blocks
        )
    return np.asarray(np.sqrt(square / max(count, 1)))


def stretches(deviations: np.ndarray) -> list[tuple[int, int]]:
    """Ranges of neighbouring channels of like scale; one alone where all are alike or nothing orders them.

    Classes are what the sorted scales fall into at gaps of UNLIKE; channels that never vary belong to their
    neighbours' class.
    """
    whole = [(0, len(deviations))]
    alive = deviations > 0
    if not np.isfinite(deviations).all() or alive.sum() < 2:
        return whole
    scales = np.sort(deviations[alive])
    gaps = scales[1:] / scales[:-1] >= UNLIKE
    bounds = np.sqrt(scales[1:] * scales[:-1])[gaps]
    if not len(bounds):
        return whole
    classes = np.searchsorted(bounds, deviations)
    known = np.flatnonzero(alive)
    nearest = np.minimum(np.searchsorted(known, np.arange(len(deviations))), len(known) - 1)
    classes = np.where(alive, classes, classes[known[nearest]])
    edges = [0, *(np.flatnonzero(np.diff(classes)) + 1), len(classes)]
    runs = [(int(a), int(b)) for a, b in pairwise(edges)]
    return runs if len(runs) <= RUNS else whole
