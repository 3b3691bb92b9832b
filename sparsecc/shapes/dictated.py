"""Sizes that a model dictates: found from the first node whose inputs do not fit, by bisection.

A Flatten before a Gemm, a Reshape to constant sizes, a table of positions that is added: each allows few sizes. The
first node that some sizes do not fit tells how far off they are; the dimensions that it depends on are moved until
it fits, one pair of sizes after the other, then the next such node is looked at. Of sizes that fit alike the roundest
are found, as the midpoints of a bisection between powers of two are round.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import onnx_ir as ir

from sparsecc.shapes.assignment import NO_MEASURE, UNKNOWN, Misfit, Probe
from sparsecc.shapes.dynamic_dims import Kinds, dim_key, is_fixed

Setting = dict[str, int]
"""Sizes of dynamic dimensions by key."""

Inputs = dict[str, tuple[int, ...]]
Walk = Callable[[Inputs, ir.Node | None], Probe]
"""Shapes at these input sizes, as far as a node, or of the whole model."""

_BASES = (((1, 64, 16), (2, 128, 32)), ((3, 96, 48), (6, 192, 96)), ((1, 224, 56), (2, 448, 112)))
"""Batch, side and length that the search for each of two probes begins from, in turn: what must be divided by 3 or by
7 is nowhere else."""

_LARGEST = 1 << 17
_ASPECT = 4
"""Sides further apart than this many times are not tried."""

_FACTORS = (2, 32, 512)
"""By what a dimension grows until a node notices: strides may be long."""

_GRAINS = (32, 16, 8, 4, 2, 1)
_DEEPEST = 12
_MOST_SOLUTIONS = 4
_MOST_NODES = 100_000
"""Nodes inferred before the search gives up: about ten seconds."""


class _GivenUpError(Exception):
    """The search took too long."""


class _Demand(NamedTuple):
    """Two sizes that a node needs to be equal, by their place among those that it does."""

    node: ir.Node
    number: int


@dataclass(frozen=True)
class _Solution:
    """Sizes that fit every node; the `dictated` dimensions may have no others."""

    setting: Setting
    dictated: frozenset[str] = frozenset()
    related: frozenset[str] = frozenset()

    def moved(self, sizes: Setting, *, is_related: bool) -> _Solution:
        """With sizes that a node demands: of others' lengths, or constant ones."""
        keys = frozenset(sizes)
        kept = (self.dictated, self.related | keys) if is_related else (self.dictated | keys, self.related)
        return _Solution(self.setting | sizes, *kept)


def dictated(
    graph: ir.Graph, values: Sequence[ir.Value], given: Mapping[str, Sequence[int]], walk: Walk
) -> Iterator[list[Inputs]]:
    """Sizes of the inputs `values` that fit every node: two probes where dimensions are still free, else one.

    `given` are the sizes that the user fixed, by input.
    """
    known: list[list[Inputs]] = []
    try:
        for bases in _BASES:
            for probes in _Search(graph, values, given, walk, bases).probes():
                if probes not in known:
                    known.append(probes)
                    yield probes
    except _GivenUpError:
        return


class _Search:
    def __init__(
        self,
        graph: ir.Graph,
        values: Sequence[ir.Value],
        given: Mapping[str, Sequence[int]],
        walk: Walk,
        bases: tuple[tuple[int, int, int], tuple[int, int, int]],
    ) -> None:
        self.values, self.given, self.walk, self.bases = values, given, walk, bases
        self.kinds = Kinds.of(value for value in values if value.name not in given)
        self.places = {node: place for place, node in enumerate(graph, 1)}
        self.left = _MOST_NODES
        self.never: frozenset[ir.Node] = frozenset()
        """Nodes that nobody can tell anything of, whatever the sizes."""
        broken = [self._walked(self.kinds.setting(*base)) for base in bases]
        self.never = frozenset(n for n in broken[0] if all(b.get(n) == UNKNOWN for b in broken))

    def probes(self) -> Iterator[list[Inputs]]:
        """Two probes, or one where no dimension is free, for each of the first solutions."""
        (batch, *_), (other_batch, *larger) = self.bases
        begin = _Solution(self.kinds.setting(*self.bases[0]))
        for found in islice(self.solutions(begin), _MOST_SOLUTIONS):
            first = self.inputs(found.setting)
            kept = {key: found.setting[key] for key in found.dictated}
            for samples in (other_batch, batch):
                begin = _Solution(self.kinds.setting(samples, *larger) | kept)
                other = next(self.solutions(begin, held=found.dictated), found)
                if (second := self.inputs(other.setting)) != first:
                    yield [first, second]
            yield [first]

    def inputs(self, setting: Setting) -> Inputs:
        """The shape of every input."""
        shapes = {}
        for value in self.values:
            dims = self.given.get(value.name or "", value.shape or ())
            shapes[value.name or ""] = tuple(
                dim if is_fixed(dim) else setting[dim_key(value, axis)] for axis, dim in enumerate(dims)
            )
        return shapes

    def solutions(
        self, begin: _Solution, held: frozenset[str] = frozenset(), depth: int = 0
    ) -> Iterator[_Solution]:
        """Sizes that fit all nodes, from these; those `held` are moved where no others help."""
        setting = begin.setting
        trouble = next(iter(self._walked(setting).items()), None)
        if trouble is None:
            yield begin
        elif depth == _DEEPEST or max(setting.values(), default=_LARGEST) >= _LARGEST:
            return
        elif trouble[1] == UNKNOWN:
            settled = begin.dictated | begin.related | self.kinds.batch
            larger = {key: 2 * size for key, size in setting.items() if key not in settled}
            if larger:
                yield from self.solutions(
                    _Solution(setting | larger, begin.dictated, begin.related), held, depth + 1
                )
        else:
            for sizes, is_related in self._moves(_Demand(trouble[0], trouble[1].demand), begin, held):
                yield from self.solutions(begin.moved(sizes, is_related=is_related), held, depth + 1)

    def _moves(
        self, demand: _Demand, begin: _Solution, held: frozenset[str]
    ) -> Iterator[tuple[Setting, bool]]:
        """Sizes that meet a demand, and whether they follow from other dimensions."""
        settled = begin.dictated | begin.related
        signs = {key: self._sign(demand, begin.setting, key) for key in begin.setting if key not in settled}
        every = frozenset(key for key, sign in signs.items() if sign)
        batch = self.kinds.batch
        for keys in dict.fromkeys((every - batch - held, every - held, every - batch, every)):
            chosen = {key: signs[key] for key in sorted(keys)}
            is_related = len(set(chosen.values())) > 1
            fits = self._singly if is_related else self._jointly
            yield from ((sizes, is_related) for sizes in fits(demand, begin.setting, chosen))

    def _sign(self, demand: _Demand, setting: Setting, key: str) -> int:
        """Whether the misfit grows (1) or falls (-1) with a dimension, or does not depend on it (0)."""
        now = self._misfit(demand, setting)
        for factor in _FACTORS:
            larger = self._misfit(demand, setting | {key: factor * setting[key]})
            if larger != now:
                return 1 if larger > now else -1
        return 0

    def _singly(self, demand: _Demand, setting: Setting, signs: Mapping[str, int]) -> Iterator[Setting]:
        """One dimension moved, the others as they are."""
        for key, sign in signs.items():
            size, _ = self._bisected(demand, setting, (key,), sign, setting[key])
            if size is not None:
                yield {key: size}

    def _jointly(self, demand: _Demand, setting: Setting, signs: Mapping[str, int]) -> Iterator[Setting]:
        """All dimensions of one size, then one of another size than the rest, the least unlike first."""
        keys = tuple(signs)
        if not keys:
            return
        sign = signs[keys[0]]
        size, middle = self._bisected(demand, setting, keys, sign, setting[keys[0]])
        if size is not None:
            yield dict.fromkeys(keys, size)
        if len(keys) > 1 and middle:
            for key in keys[: 1 if len(keys) == 2 else None]:
                rest = tuple(other for other in keys if other != key)
                yield from self._unlike(demand, setting, key, rest, sign, middle)
            yield from self._singly(demand, setting, signs)

    def _unlike(
        self, demand: _Demand, setting: Setting, key: str, rest: tuple[str, ...], sign: int, middle: int
    ) -> Iterator[Setting]:
        """Sizes of one dimension and of the rest, around the size that all together would have to have."""
        seen: set[float] = set()
        for size in _around(middle):
            whole = setting | dict.fromkeys(rest, middle) | {key: size}
            misfit = self._misfit(demand, whole)
            if misfit in seen:
                continue
            seen.add(misfit)
            other, _ = self._bisected(demand, whole, rest, sign, max(1, middle * middle // size))
            if other is not None:
                yield {key: size, **dict.fromkeys(rest, other)}

    def _bisected(
        self, demand: _Demand, setting: Setting, keys: tuple[str, ...], sign: int, guess: int
    ) -> tuple[int | None, int | None]:
        """The roundest size of `keys` that meets a demand, None where none does; the size below which it is too small,
        None where it is never too large."""
        low, high, size = 0, 0, 1 << (guess.bit_length() - 1)
        while 1 <= size <= _LARGEST and not (low and high):
            misfit = self._oriented(demand, setting, keys, sign, size)
            if misfit == 0:
                return size, size
            low, high = (size, high) if misfit < 0 else (low, size)
            size = 2 * size if misfit < 0 else size // 2
        if not high:
            return None, None
        while high - low > 1:
            size = (low + high) // 2
            misfit = self._oriented(demand, setting, keys, sign, size)
            if misfit == 0:
                return size, size
            low, high = (size, high) if misfit < 0 else (low, size)
        return None, low

    def _oriented(
        self, demand: _Demand, setting: Setting, keys: tuple[str, ...], sign: int, size: int
    ) -> float:
        """Below 0 where `keys` of this size are too small for a demand."""
        misfit = self._misfit(demand, setting | dict.fromkeys(keys, size))
        return misfit if misfit == NO_MEASURE else sign * misfit

    def _misfit(self, demand: _Demand, setting: Setting) -> float:
        """How far off the sizes are that a demand is about; where demands before it are not met, no measure."""
        misfits = self._walked(setting, demand.node)
        found = misfits.get(demand.node)
        if found is None:
            return NO_MEASURE if misfits else 0.0
        if found == UNKNOWN or found.demand == demand.number:
            return found.off
        return 0.0 if found.demand > demand.number else NO_MEASURE

    def _walked(self, setting: Setting, until: ir.Node | None = None) -> dict[ir.Node, Misfit]:
        """The nodes that these sizes do not fit, as far as one node or all, in order, and how far off they are."""
        self.left -= self.places.get(until, len(self.places)) if until is not None else len(self.places)
        if self.left < 0:
            raise _GivenUpError
        misfits = self.walk(self.inputs(setting), until).misfits
        return {node: misfit for node, misfit in misfits.items() if node not in self.never}


def _around(middle: int) -> Iterator[int]:
    """Sizes around one, those that 32 divides first, then those that 16 does, each from the nearest on."""
    known: set[int] = set()
    for grain in _GRAINS:
        below, above = middle // _ASPECT, middle * _ASPECT
        sizes = range(max(grain, -(-below // grain) * grain), above + 1, grain)
        for size in sorted(sizes, key=lambda size: abs(math.log(size / middle))):
            if size not in known:
                known.add(size)
                yield size
