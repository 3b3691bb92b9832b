"""Calibration samples in memory, in batches as large as pays."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path

import numpy as np
import onnx_ir as ir

from sparsecc.data.random_inputs import feeds_from, random_feeds
from sparsecc.errors import InputError
from sparsecc.shapes.dynamic_dims import input_values, takes_any_batch

Feeds = dict[str, np.ndarray]
LIMIT = 512
"""Samples that are read at most: beyond a few hundred, moments hardly change."""
BATCH = 64
TOGETHER = 4 << 20
"""Bytes of a batch from which on no more samples join it: values of larger ones leave caches, and every layer of them
is new memory."""
FEWEST = 4
"""Samples below which none are held out."""
FEW = 16
"""Samples below which a fourth is held out: too few to judge by, so all are in turn (`CalibrationSet.folds`)."""
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
        """The leading batches, at least one, that hold `number` samples or more."""
        chosen: list[Feeds] = []
        for batch in self.batches:
            missing = number - sum(_length(b) for b in chosen)
            if missing <= 0:
                break
            chosen.append(batch)
        return Samples(tuple(chosen), self.real)

    def leading(self, number: int, *, whole_batches: bool) -> Samples:
        """The first `number` samples; with whole batches as `first`."""
        chosen = list(self.first(number).batches)
        more = sum(map(_length, chosen)) - number
        if chosen and more > 0 and not whole_batches and len(_lengths(chosen[-1])) == 1:
            chosen[-1] = {name: array[:-more] for name, array in chosen[-1].items()}
        return Samples(tuple(chosen), self.real)

    def divided(self, *, whole_batches: bool) -> tuple[Samples, Samples]:
        """(fitted to, held out), as `divided` divides batches."""
        fitted, held_out = divided(self.batches, whole_batches=whole_batches)
        return Samples(tuple(fitted), self.real), Samples(tuple(held_out), self.real)


class CalibrationSet:
    """The samples of `option`, read once and divided: a part of them is never fitted to, and judges what was.

    They must fit the inputs that the model has now, whatever becomes of it later; a `source` gives them where `spec`
    names no file. A preprocessor and tokenizer may lie in `beside`. At most `batch` make a large batch. Without
    `divide` all are fitted to:
    nothing is judged by them.
    """

    def __init__(
        self,
        spec: str,
        model: ir.Model,
        option: str = "--calib",
        *,
        divide: bool = True,
        source: Iterator[Feeds] | None = None,
        batch: int = BATCH,
        beside: Path | None = None,
    ) -> None:
        self._divide = divide
        self._name = f"{option} {spec}"
        self._inputs = _inputs_of(model)
        self._source = feeds_from(spec, self._inputs, beside) if source is None else source
        self._batch = batch
        self._first: Feeds | None = None
        self._few: list[Feeds] = []

    @staticmethod
    def of(fitted: Samples, held_out: Samples | None = None) -> CalibrationSet:
        """Samples that are in memory already."""
        found = CalibrationSet("", ir.Model(ir.Graph([], [], nodes=[]), ir_version=10))
        found.samples, found.held_out = fitted, held_out or Samples((), real=True)
        found._divided = list(fitted.batches), list(found.held_out.batches)
        found._first = next(iter(fitted.batches), {})
        return found

    @property
    def first(self) -> Feeds:
        """The first batch; {} where there is none. No other is read for it. InputError on bad data."""
        if self._first is None:
            self._first = next(iter(self._source), {})
        return self._first

    def batches(self, number: int) -> list[Feeds]:
        """The first `number` batches of those that are fitted to, as the user gave them, all where there are fewer."""
        return self._divided[0][:number]

    @cached_property
    def samples(self) -> Samples:
        """Those that weights, ranges and scores are fitted to, in large batches, in the order of the user's.

        InputError where there are none. The batches as read become views of these: samples are held once.
        """
        fitted = self._divided[0]
        groups = list(grouped(fitted, self._inputs, self._batch))
        joined = Samples(tuple(_joined(group) for group in groups), real=True)
        if not joined.number:
            raise InputError(f"{self._name} holds no samples: give at least one")
        fitted[:] = [view for b, g in zip(joined.batches, groups, strict=True) for view in _cut(b, g)]
        return joined

    @cached_property
    def held_out(self) -> Samples:
        """Those that nothing is fitted to, in large batches: what results are judged by. None of fewer than FEWEST."""
        return Samples(tuple(merged(self._divided[1], self._inputs, self._batch)), real=True)

    @cached_property
    def _divided(self) -> tuple[list[Feeds], list[Feeds]]:
        """(fitted to, held out): up to LIMIT samples, every so many-th kept back; whole batches where the model takes
        no others."""
        read: list[Feeds] = []
        first = [self.first] if self.first else []
        for batch in chain(first, self._source):
            read.append(batch)
            if _length_of(read) >= LIMIT:
                break
        if not self._divide:
            return read, []
        whole_batches = not takes_any_batch(self._inputs)
        self._few = list(read) if sum(_counted(read, whole_batches)) < FEW else []
        return divided(read, whole_batches=whole_batches)

    def folds(self) -> list[CalibrationSet]:
        """Few samples divided in other ways, so that with the division of this set each is held out once.

        None of a single one, and none where those held out are enough to judge by. Their `first` is that of this set:
        a model is analysed at its sizes.
        """
        _ = self._divided
        whole_batches = not takes_any_batch(self._inputs)
        total = sum(_counted(self._few, whole_batches))
        first, number = (0, total) if total < FEWEST else (1, 4)
        found = []
        for fold in range(first, number) if total > 1 else ():
            parts = divided(self._few, whole_batches=whole_batches, every=number, fold=fold)
            fitted, held_out = (
                Samples(tuple(merged(part, self._inputs, self._batch)), real=True) for part in parts
            )
            found.append(CalibrationSet.of(fitted, held_out))
            found[-1]._first = self.first
        return found


def divided(
    batches: Sequence[Feeds], *, whole_batches: bool, every: int | None = None, fold: int = 0
) -> tuple[list[Feeds], list[Feeds]]:
    """(fitted to, held out): a fifth is held out, at least 8 where there are 16, a fourth of fewer, none of fewer than
    FEWEST. They are taken at equal distances, so that both see all of what is ordered by class or time.

    With `every` one of so many is held out, whatever their number, each in one of as many folds.
    """
    numbers = _counted(batches, whole_batches)
    total, passed = sum(numbers), 0
    enough = every is not None or total >= FEWEST
    every = every or (4 if total < FEW else max(2, min(5, total // 8)))
    fitted: list[Feeds] = []
    held_out: list[Feeds] = []
    for batch, number in zip(batches, numbers, strict=True):
        back = np.arange(passed, passed + number) % every == every - 1 - fold
        back &= enough
        passed += number
        for part, chosen in ((fitted, ~back), (held_out, back)):
            if chosen.all():
                part.append(batch)
            elif chosen.any():
                part.append({name: array[chosen] for name, array in batch.items()})
    return fitted, held_out


def _inputs_of(model: ir.Model) -> ir.Model:
    """A model without nodes that has the inputs of this one."""
    values = [
        ir.Value(name=v.name, shape=v.shape and v.shape.copy(), type=v.type) for v in input_values(model)
    ]
    return ir.Model(ir.Graph(values, [], nodes=[], opset_imports={"": 20}), ir_version=10)


def random_samples(
    model: ir.Model,
    *,
    sizes: dict[str, tuple[int, ...]],
    seed: int,
    number: int = DRAWN,
    joined: bool = True,
    plain: int | None = None,
    given: Feeds | None = None,
) -> Samples:
    """At least so many random inputs of the given sizes: N(0, 1) unless `plain`, in the frequencies of photographs
    where the shape is that of an image; in large batches, or not `joined`. What is `given` is the same in all."""
    drawn: list[Feeds] = []
    for draw in range(number):
        if sum(_length(d) for d in drawn) >= number:
            break
        feeds = random_feeds(model, seed=seed + draw, sizes=sizes, plain=plain)
        drawn.append({name: image_like(array) for name, array in feeds.items()} | (given or {}))
    return Samples(tuple(merged(drawn, model) if joined else drawn), real=False)


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


def merged(feeds: Iterable[Feeds], model: ir.Model, batch: int = BATCH) -> list[Feeds]:
    """Up to LIMIT samples, small batches joined into larger ones where every input's first axis is free."""
    return [_joined(group) for group in grouped(feeds, model, batch)]


def grouped(feeds: Iterable[Feeds], model: ir.Model, batch: int = BATCH) -> Iterator[list[Feeds]]:
    """Up to LIMIT samples: the batches that make a larger one together."""
    free = takes_any_batch(model)
    waiting: list[Feeds] = []
    seen = 0
    for one in feeds:
        is_large = _length_of(waiting) >= batch or _bytes_of(waiting) >= TOGETHER
        if waiting and (not free or is_large or not _fits(waiting[0], one)):
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


def _counted(batches: Sequence[Feeds], whole_batches: bool) -> list[int]:
    """How many samples each batch is to a division; one where it must stay whole."""
    return [1 if whole_batches or len(_lengths(batch)) > 1 else _length(batch) for batch in batches]


def _lengths(feeds: Feeds) -> set[int]:
    return {len(array) if array.ndim else 1 for array in feeds.values()}


def _length(feeds: Feeds) -> int:
    """Samples of a batch: one where no input has an axis beside the one that may count them, as a waveform has not."""
    if all(array.ndim < 2 for array in feeds.values()):
        return 1
    array = next(iter(feeds.values()))
    return int(array.shape[0]) if array.ndim else 1


def _bytes_of(parts: Sequence[Feeds]) -> int:
    return sum(array.nbytes for part in parts for array in part.values())


def _length_of(parts: Sequence[Feeds]) -> int:
    return sum(_length(p) for p in parts)
