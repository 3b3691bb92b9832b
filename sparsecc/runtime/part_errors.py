"""How far two runs differ, part by part: each output, and within it each channel, relative to its own size."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sparsecc.runtime.numerics import LOOSE, TOLERANCE, Outputs, is_float, same_specials
from sparsecc.runtime.rounding import AMPLIFIED

STEPPED = 4.0
"""How many times what rounding of inputs and weights does an error may be, to be rounding for sure, in a graph that
computes in integers: numbers move by whole steps there, and 16 steps may be all that an 8-bit number varies by."""

_STEADY, _MORE = 0.01, 1e3
"""What rounding of all weights moves at most where nothing jumps, or so many times what that of a few moves."""

Errors = Mapping[str, np.ndarray]
"""Output name -> relative errors (float64): of all of it first, then of its channels."""

FEWEST = 8
"""Entries of a channel: what rounding does to fewer cannot be told from so few."""

LEAST = 0.01
"""The size of a channel counts as at least this share of its output's: below that, what is left of a sum of large
numbers is rounding."""


def part_errors(reference: Outputs, found: Outputs) -> dict[str, np.ndarray]:
    """The errors of every output of `reference`."""
    return {name: errors_of(reference[name], found[name]) for name in reference}


def errors_of(reference: Any, found: Any) -> np.ndarray:
    """Relative errors of one output: of the whole, then of every channel (axis 1 of rank 3 and more; the last axis).

    An error is max |difference| / max |reference| over the finite entries of a part; infinite everywhere where shapes
    or the pattern of NaN and infinity differ. Integers and booleans: the share of entries that differ.
    Sequences have the largest error of their elements.
    """
    if isinstance(reference, list) and isinstance(found, list):
        if len(reference) != len(found):
            return np.asarray([np.inf])
        pairs = zip(reference, found, strict=True)
        return np.asarray([max((float(errors_of(a, b).max()) for a, b in pairs), default=0.0)])
    if reference is None or found is None:
        return np.asarray([0.0 if reference is found else np.inf])
    return _of_tensors(np.asarray(reference), np.asarray(found))


def _of_tensors(reference: np.ndarray, found: np.ndarray) -> np.ndarray:
    if reference.shape != found.shape:
        return np.asarray([np.inf])
    if not reference.size:
        return np.zeros(1)
    if not is_float(reference):
        return np.asarray([float(np.mean(reference != found))])
    largest = difference = np.zeros(1)
    for a, b in _blocks(reference, found):
        finite = np.isfinite(a)
        if not (finite.all() and np.isfinite(b).all()):
            if not np.array_equal(finite, np.isfinite(b)) or not same_specials(a[~finite], b[~finite]):
                return np.asarray([np.inf])
            a, b = np.where(finite, a, 0), np.where(finite, b, 0)
        largest = np.maximum(largest, _maxima(np.abs(a), reference.shape))
        difference = np.maximum(difference, _maxima(np.abs(a - b), reference.shape))
    size = np.maximum(np.maximum(largest, LEAST * largest[0]), 1e-12)
    return np.asarray(difference / size, dtype=np.float64)


def _blocks(*arrays: np.ndarray) -> Iterator[list[np.ndarray]]:
    """Blocks (channels, rest, last), at least in float32, one for each entry of the first axis of rank 3 and more."""
    shape, wide = arrays[0].shape, np.float64 if arrays[0].dtype == np.float64 else np.float32
    if len(shape) < 3:
        shape = (1, 1, *((1,) * (2 - len(shape))), *shape)
    else:
        shape = (shape[0], shape[1], int(np.prod(shape[2:-1], dtype=np.int64)), shape[-1])
    for blocks in zip(*(array.reshape(shape) for array in arrays), strict=True):
        yield [block.astype(wide, copy=False) for block in blocks]


def _maxima(block: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Of the whole, of every channel, of every entry of the last axis, as far as the tensor has these."""
    found = [block.max().reshape(1)]
    size = int(np.prod(shape, dtype=np.int64))
    if len(shape) > 2 and size >= FEWEST * shape[1]:
        found.append(block.max(axis=(1, 2)))
    if len(shape) > 1 and size >= FEWEST * shape[-1]:
        found.append(block.max(axis=(0, 1)))
    return np.concatenate(found)


def unexplained(
    errors: Errors,
    tolerances: Mapping[str, float],
    floors: Errors | None = None,
    amplified: float = AMPLIFIED,
) -> dict[str, float]:
    """The outputs with a part whose error is above its tolerance, and above what rounding explains (`floors`: the
    errors that rounding makes, `amplified`), with that error. NaN and infinite floors explain everything."""
    found = {}
    for name, error in errors.items():
        allowed = np.full(error.shape, tolerances[name])
        if floors is not None:
            floor = floors[name]
            floor = floor if floor.shape == error.shape else np.full(error.shape, floor.max())
            allowed = np.maximum(allowed, amplified * np.nan_to_num(floor, nan=np.inf, posinf=np.inf))
        if (error > allowed).any():
            found[name] = float(error[error > allowed].max())
    return found


def steady(floors: Errors, first: Errors | None = None) -> dict[str, np.ndarray]:
    """The errors that rounding makes (`floors`), zero where it made a jump instead: infinite ones (a NaN that came or
    went), and those far above the `first` draws'."""
    most = dict.fromkeys(floors, np.inf)
    if first:
        most = {name: max(_STEADY, _MORE * float(first[name].max())) for name in floors}
    return {n: np.where(np.isfinite(e) & (e <= most[n]), e, 0.0) for n, e in floors.items()}


def tolerances_of(outputs: Outputs) -> dict[str, float]:
    """The relative error that the type of each output allows without question."""
    return {name: max(TOLERANCE, LOOSE.get(_type_of(output), 0.0)) for name, output in outputs.items()}


def _type_of(output: Any) -> str:
    return output.dtype.name if isinstance(output, np.ndarray) else ""


def largest(*errors: Errors) -> dict[str, np.ndarray]:
    """Part by part the largest of several runs' errors."""
    found = dict(errors[0])
    for one in errors[1:]:
        for name, error in one.items():
            same = error.shape == found[name].shape
            found[name] = np.maximum(found[name], error if same else error.max())
    return found


@dataclass
class Rounding:
    """How far rounding moves values: what a graph gave, and what it gave when its inputs moved by a rounding step."""

    found: Outputs
    moved: Sequence[Outputs]
    known: dict[str, np.ndarray] = field(default_factory=dict)

    def floors(self, names: Iterable[str]) -> dict[str, np.ndarray]:
        """The largest errors of these values, part by part; each is worked out when it is first asked for."""
        new = {name: self.found[name] for name in names if name not in self.known}
        if new:
            self.known |= largest(*(part_errors(new, one) for one in self.moved))
        return self.known

    def leaves(self, wanted: Outputs, found: Outputs, known: Errors) -> dict[str, float]:
        """The values whose errors are `known` ones and more than rounding explains, with what is more."""
        with np.errstate(invalid="ignore"):
            added = {name: error - known[name] for name, error in part_errors(wanted, found).items()}
        return unexplained(added, tolerances_of(wanted), self.floors(wanted))
