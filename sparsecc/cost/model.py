"""What a model costs as a function of how many slots each group keeps. Exact: equal to counting the result."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import onnx_ir as ir

from sparsecc.axes.algebra import Atom, Axis, Cat, Mul, atoms_of, resolve
from sparsecc.axes.counting import Kept, _counted, count, slots
from sparsecc.axes.sizes import at
from sparsecc.graph.analysis import Analysis
from sparsecc.graph.caches import caches
from sparsecc.ir.dtypes import FLOATS
from sparsecc.system.gc_pause import collector_paused


@dataclass(frozen=True)
class Term:
    """A summand of a cost, and the atoms it depends on. Where it is the product of how many slots some atoms
    keep, and of nothing else, `factors` are these."""

    value: Callable[[Kept], float]
    atoms: tuple[Atom, ...]
    factors: tuple[Atom, ...] | None = None


@dataclass
class CostModel:
    """A sum of terms, each a function of how many slots the atoms keep."""

    unit: str
    terms: list[Term]
    _of: dict[Atom, list[Term]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for term in self.terms:
            for atom in term.atoms:
                self._of.setdefault(atom, []).append(term)

    @cached_property
    def _products(self) -> _Products:
        return _Products([term.factors for term in self.terms if term.factors is not None])

    @cached_property
    def _others(self) -> list[Term]:
        return [term for term in self.terms if term.factors is None]

    def total(self, kept: Kept) -> float:
        return math.fsum([self._products.total(kept), *(term.value(kept) for term in self._others)])

    def at_stake(self, atom: Atom) -> float:
        """What the terms that depend on an atom cost in the dense model."""
        return math.fsum(term.value({}) for term in self._of.get(atom, ()))

    def change(self, kept: dict[Atom, int], atom: Atom, slots: int) -> float:
        """How much the cost changes when an atom keeps `slots` instead of what `kept` says."""
        terms = self._of.get(atom, ())
        before = math.fsum(term.value(kept) for term in terms)
        old, kept[atom] = kept.get(atom), slots
        after = math.fsum(term.value(kept) for term in terms)
        if old is None:
            del kept[atom]
        else:
            kept[atom] = old
        return after - before


class _Products:
    """Many products of counts at once: most of a long model's cost."""

    def __init__(self, products: Sequence[tuple[Atom, ...]]) -> None:
        self._index = {atom: i + 1 for i, atom in enumerate(dict.fromkeys(a for p in products for a in p))}
        self._dense = np.array([1.0, *(slots(atom, {}) for atom in self._index)])
        self._places = np.zeros((len(products), max(map(len, products), default=0)), dtype=np.int64)
        for row, product in zip(self._places, products, strict=True):
            row[: len(product)] = [self._index[atom] for atom in product]

    def total(self, kept: Kept) -> float:
        """Their sum; exact up to 2^53."""
        counts = self._dense.copy()
        for atom, number in kept.items():
            counts[self._index.get(atom, 0)] = number
        counts[0] = 1.0
        return float(counts[self._places].prod(axis=1).sum())


@collector_paused()
def macs_model(analysis: Analysis) -> CostModel:
    """Multiply-accumulates of convolutions and matrix products, at the first probe's input sizes.

    Those of a loop's body count once per iteration where their number follows from the input sizes, else once;
    those of both branches of an If count.
    """
    terms = []
    for products in analysis.record.macs.values():
        for axes in products:
            resolved = [resolve(axis) for axis in axes]
            atoms = tuple(axis for axis in resolved if isinstance(axis, Atom))
            factors = atoms if len(atoms) == len(axes) else None
            terms.append(Term(_product(axes), _atoms(axes), factors))
    return CostModel("macs", terms)


@collector_paused()
def params_model(analysis: Analysis) -> CostModel:
    """Elements of all weights. A constant whose uses lose different slots counts once per variant."""
    uses: dict[ir.Value, dict[tuple[object, ...], list[Axis]]] = {}
    for value, axes in analysis.weights():
        uses.setdefault(value, {}).setdefault(tuple(_shape_key(a) for a in axes), axes)
    terms = []
    for value in analysis.model.graph.initializers.values():
        tensor = value.const_value
        if tensor is None or tensor.dtype not in FLOATS:
            continue
        variants = list(uses.get(value, {}).values())
        atoms = tuple(dict.fromkeys(a for axes in variants for a in _atoms(axes)))
        terms.append(Term(_elements(int(tensor.size), variants), atoms))
    return CostModel("params", terms)


def cache_model(analysis: Analysis) -> CostModel:
    """Bytes that the caches of a decoder take for one position of one text; without caches it has no terms."""
    terms = []
    for cache in caches(analysis.model):
        axes = analysis.record.axes.get(cache.past)
        if axes is not None:
            own = [axes[cache.heads], axes[cache.width], *axes[: cache.batch]]
            counted, size = _product(own), 1 if cache.past.dtype is None else cache.past.dtype.itemsize
            terms.append(Term(_scaled(counted, size), _atoms(own)))
    return CostModel("kv", terms)


def _scaled(value: Callable[[Kept], float], factor: float) -> Callable[[Kept], float]:
    return lambda kept: factor * value(kept)


def slots_model(analysis: Analysis, free: list[Atom]) -> CostModel:
    """The share of slots kept, averaged over the free groups (`--metric channels`)."""
    return CostModel("channels", [Term(_share(atom), (atom,)) for atom in free])


def _share(atom: Atom) -> Callable[[Kept], float]:
    size = at(atom.size, 0)
    return lambda kept: kept.get(atom, size) / size


def _product(axes: list[Axis]) -> Callable[[Kept], float]:
    """Most axes are single atoms, whose count is a look-up."""
    resolved = [factor for axis in axes for factor in _counted(axis)]
    atoms = [(axis, at(axis.size, 0)) for axis in resolved if isinstance(axis, Atom)]
    others = [axis for axis in resolved if not isinstance(axis, Atom)]

    def value(kept: Kept) -> float:
        total = 1
        for atom, size in atoms:
            total *= kept.get(atom, size)
        for axis in others:
            total *= at(count(axis, kept), 0)
        return total

    return value


def _elements(size: int, variants: list[list[Axis]]) -> Callable[[Kept], float]:
    atoms = [frozenset(_atoms(axes)) for axes in variants]

    def value(kept: Kept) -> float:
        changed = [axes for axes, own in zip(variants, atoms, strict=True) if any(a in kept for a in own)]
        whole = size if len(changed) < max(len(variants), 1) else 0
        return whole + sum(math.prod(at(count(axis, kept), 0) for axis in axes) for axes in changed)

    return value


def _atoms(axes: list[Axis]) -> tuple[Atom, ...]:
    return tuple(dict.fromkeys(atom for axis in axes for atom in atoms_of(axis)))


def _shape_key(axis: Axis) -> object:
    """Equal for axes that are the same expression of the same atoms."""
    axis = resolve(axis)
    if isinstance(axis, Cat):
        return ("cat", *(_shape_key(p) for p in axis.parts))
    if isinstance(axis, Mul):
        return ("mul", *(_shape_key(f) for f in axis.factors))
    return axis if not isinstance(axis, Atom) or axis.size != 1 else 1
