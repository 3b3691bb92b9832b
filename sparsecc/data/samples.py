"""Calibration samples in memory, in batches as large as the model takes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import onnx_ir as ir

from sparsecc.data.random_inputs import feeds_from, random_feeds
from sparsecc.errors import InputError
from sparsecc.shapes.dynamic_dims import input_values, is_fixed

Feeds = dict[str, np.ndarray]
LIMIT = 512
"""Samples that are read at most: beyond a few hundred, moments hardly change."""
BATCH = 64
DRAWN = 64
"""Random samples where there are none."""


@dataclass(frozen=True)
class Samples:
    """Batches of inputs. `real` is False where they are random numbers."""

    batches: tuple[Feeds, ...]
    real: bool

    @property
    def number(self) -> int:
        """Samples in all, counted along the first axis of the first input."""
        return sum(_length(batch) for batch in self.batches)

    def first(self, number: int) -> Samples:
        """The leading batches, at least one, that hold about `number` samples; a longer batch is cut."""
        chosen: list[Feeds] = []
        for batch in self.batches:
            missing = number - sum(_length(b) for b in chosen)
            if missing <= 0:
                break
            chosen.append(batch)
        return Samples(tuple(chosen), self.real)


class CalibrationSet:
    """The samples of `option`, read once: a user's function is called once, and only as far as samples are asked for.

    They must fit the inputs that the model has now, whatever becomes of it later.
    """

    def __init__(self, spec: str, model: ir.Model, option: str = "--calib") -> None:
        self._name = f"{option} {spec}"
        self._inputs = _inputs_of(model)
        self._source = feeds_from(spec, self._inputs)
        self._read: list[Feeds] = []
        self._joined: Samples | None = None

    def batches(self, number: int) -> list[Feeds]:
        """The first `number` batches as the user gave them, all where there are fewer. InputError on bad data."""
        self._read += islice(self._source, max(0, number - len(self._read)))
        return self._read[:number]

    @property
    def first(self) -> Feeds:
        """The first batch; {} where there is none."""
        return next(iter(self.batches(1)), {})

    @property
    def samples(self) -> Samples:
        """Up to LIMIT samples in large batches, in the order of the user's. InputError where there are none.

        The batches as read become views of these: samples are held once.
        """
        if self._joined is None:
            groups = list(grouped(self._each(), self._inputs))
            joined = Samples(tuple(_joined(group) for group in groups), real=True)
            if not joined.number:
                raise InputError(f"{self._name} holds no samples: give at least one")
            views = [view for b, g in zip(joined.batches, groups, strict=True) for view in _cut(b, g)]
            self._read[: len(views)] = views
            self._joined = joined
        return self._joined

    def _each(self) -> Iterator[Feeds]:
        """All batches in turn, those not read yet as they are asked for."""
        number = 0
        while len(self.batches(number + 1)) > number:
            yield self._read[number]
            number += 1


def _inputs_of(model: ir.Model) -> ir.Model:
    """A model without nodes that has the inputs of this one."""
    values = [
        ir.Value(name=v.name, shape=v.shape and v.shape.copy(), type=v.type) for v in input_values(model)
    ]
    return ir.Model(ir.Graph(values, [], nodes=[], opset_imports={"": 20}), ir_version=10)


def random_samples(model: ir.Model, *, sizes: dict[str, tuple[int, ...]], seed: int) -> Samples:
    """Random inputs of the given sizes: N(0, 1), in the frequencies of photographs where the shape is that of an
    image."""
    drawn: list[Feeds] = []
    for number in range(DRAWN):
        if sum(_length(d) for d in drawn) >= DRAWN:
            break
        feeds = random_feeds(model, seed=seed + number, sizes=sizes)
        drawn.append({name: image_like(array) for name, array in feeds.items()})
    return Samples(tuple(merged(drawn, model)), real=False)


def image_like(array: np.ndarray) -> np.ndarray:
    """Noise with an image's shape (four axes, at most four channels) with amplitudes that fall as 1/frequency,
    as those of natural images do (Field, 1987); anything else as it is."""
    if array.ndim != 4 or array.dtype.kind != "f" or min(array.shape[1], array.shape[3]) > 4:
        return array
    axes = (2, 3) if array.shape[1] <= 4 else (1, 2)
    sizes = [array.shape[axis] for axis in axes]
    if min(sizes) < 4:
        return array
    down, across = np.fft.fftfreq(sizes[0]), np.fft.rfftfreq(sizes[1])
    frequency = np.maximum(np.hypot(down[:, None], across[None, :]), 1 / max(sizes))
    shape = [1] * 4
    shape[axes[0]], shape[axes[1]] = frequency.shape
    filtered = np.fft.irfft2(np.fft.rfft2(array, axes=axes) / frequency.reshape(shape), s=sizes, axes=axes)
    return np.asarray(filtered / filtered.std(axis=axes, keepdims=True)).astype(array.dtype)


def merged(feeds: Iterable[Feeds], model: ir.Model) -> list[Feeds]:
    """Up to LIMIT samples, small batches joined into larger ones where every input's first axis is free."""
    return [_joined(group) for group in grouped(feeds, model)]


def grouped(feeds: Iterable[Feeds], model: ir.Model) -> Iterator[list[Feeds]]:
    """Up to LIMIT samples: the batches that make a larger one together."""
    free = all(v.shape is not None and len(v.shape) and not is_fixed(v.shape[0]) for v in input_values(model))
    waiting: list[Feeds] = []
    seen = 0
    for one in feeds:
        if waiting and (not free or _length_of(waiting) >= BATCH or not _fits(waiting[0], one)):
            yield waiting
            waiting = []
        waiting.append(dict(one))
        seen += _length(one)
        if seen >= LIMIT:
            break
    if waiting:
        yield waiting


def _joined(parts: Sequence[Feeds]) -> Feeds:
    if len(parts) == 1:
        return parts[0]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _cut(batch: Feeds, parts: Sequence[Feeds]) -> list[Feeds]:
    """The parts that a batch was joined from, as views of it."""
    if len(parts) == 1:
        return list(parts)
    ends = {name: np.cumsum([len(part[name]) for part in parts]) for name in batch}
    return [
        {name: batch[name][ends[name][i] - len(part[name]) : ends[name][i]] for name in batch}
        for i, part in enumerate(parts)
    ]


def _fits(a: Feeds, b: Feeds) -> bool:
    return all(a[n].ndim > 0 and a[n].shape[1:] == b[n].shape[1:] for n in a)


def _length(feeds: Feeds) -> int:
    array = next(iter(feeds.values()), np.zeros(1))
    return int(array.shape[0]) if array.ndim else 1


def _length_of(parts: Sequence[Feeds]) -> int:
    return sum(_length(p) for p in parts)
