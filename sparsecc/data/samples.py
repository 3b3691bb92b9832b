"""Calibration samples in memory, in batches as large as the model takes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from sparsecc.data.files import SYNTHETIC
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


def samples_of(
    spec: str | None,
    model: ir.Model,
    *,
    sizes: dict[str, tuple[int, ...]],
    seed: int,
    option: str = "--calib",
) -> Samples:
    """The samples of `option`, or random inputs of the given sizes without it: N(0, 1), in the frequencies of
    photographs where the shape is that of an image. InputError on bad data.
    """
    if spec is not None and spec != SYNTHETIC:
        found = Samples(tuple(merged(feeds_from(spec, model), model)), real=True)
        if not found.number:
            raise InputError(f"{option} {spec} holds no samples: give at least one")
        return found
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
    free = all(v.shape is not None and len(v.shape) and not is_fixed(v.shape[0]) for v in input_values(model))
    whole: list[Feeds] = []
    waiting: list[Feeds] = []
    seen = 0
    for one in feeds:
        if seen >= LIMIT:
            break
        seen += _length(one)
        if waiting and (not free or _length_of(waiting) >= BATCH or not _fits(waiting[0], one)):
            whole.append(_joined(waiting))
            waiting = []
        waiting.append(dict(one))
    return [*whole, _joined(waiting)] if waiting else whole


def _joined(parts: Sequence[Feeds]) -> Feeds:
    if len(parts) == 1:
        return parts[0]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _fits(a: Feeds, b: Feeds) -> bool:
    return all(a[n].ndim > 0 and a[n].shape[1:] == b[n].shape[1:] for n in a)


def _length(feeds: Feeds) -> int:
    array = next(iter(feeds.values()), np.zeros(1))
    return int(array.shape[0]) if array.ndim else 1


def _length_of(parts: Sequence[Feeds]) -> int:
    return sum(_length(p) for p in parts)
