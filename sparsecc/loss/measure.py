"""How far outputs are from the dense model's: squared error relative to variance, part by part, pooled over samples.

    loss of a part = sum over samples and slots of (found - dense)^2 / sum of (dense - mean of its channel)^2

Energies are pooled before they are divided, never decibels averaged: a few samples that are right to the last
digit would hide those that are wrong. One is as bad as answering with the mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from sparsecc.loss.parts import Part, by_scale
from sparsecc.runtime.numerics import decibels, is_float

Outputs = Mapping[str, np.ndarray]

CONSTANT = 1e-12
"""Of a part's mean square: variance up to here is rounding, and the part is the same on all samples."""


ENOUGH = 8
"""Values of a channel from which its mean is known well enough."""


@dataclass(frozen=True)
class Losses:
    """The relative squared error of every part. `constant` names parts that are the same on all samples: nothing is
    known of what moves them, and their error is told relative to their own size."""

    parts: Mapping[str, float]
    constant: tuple[str, ...] = ()

    @property
    def mean(self) -> float:
        """What steers: every part counts alike, however large its numbers are."""
        return float(np.mean(list(self.parts.values()))) if self.parts else 0.0

    @property
    def worst(self) -> tuple[str, float]:
        """The part that lost most; ("", 0.0) where there is none."""
        return max(self.parts.items(), key=lambda item: item[1], default=("", 0.0))

    def to_json(self) -> dict[str, Any]:
        """{"quality_db", "worst": {"part", "quality_db"}, "parts": {name: dB}, "constant"}."""
        name, loss = self.worst
        facts: dict[str, Any] = {"quality_db": quality(self.mean)}
        if name:
            facts["worst"] = {"part": name, "quality_db": quality(loss)}
        facts["parts"] = {part: quality(value) for part, value in self.parts.items()}
        if self.constant:
            facts["constant"] = list(self.constant)
        return facts


def quality(loss: float) -> float:
    """A relative squared error in decibels: 0 is as bad as the mean, 20 a tenth of the standard deviation."""
    return round(decibels(1.0, loss), 2)


class Reference:
    """The dense model's outputs, batch by batch, and the loss of others against them.

    `parts` are those of the model's axes; each is cut further where its channels are of unlike scale.
    """

    def __init__(self, outputs: Sequence[Outputs], parts: Sequence[Part] = ()) -> None:
        self.outputs = outputs
        known = parts or [Part(name) for name in outputs[0]]
        floats = [part for part in known if self._is_float(part)]
        self.parts = tuple(piece for part in floats for piece in by_scale(part, outputs))

    def _is_float(self, part: Part) -> bool:
        first = self.outputs[0].get(part.output)
        return isinstance(first, np.ndarray) and is_float(first) and first.size > 0

    def _is_number(self, part: Part) -> bool:
        """Whether the dense model gives any: nothing can be said of outputs that are all NaN."""
        return any(bool(np.isfinite(part.of(batch[part.output])).any()) for batch in self.outputs)

    @property
    def needs_more(self) -> bool:
        """Whether channels have too few values for means of their own, which more samples would give them."""
        for part in self.parts:
            blocks, axis = (
                [part.of(np.asarray(batch[part.output])) for batch in self.outputs],
                _channels_of(part),
            )
            if blocks[0].ndim > axis and not _are_enough(blocks, axis):
                return True
        return False

    def losses(self, found: Sequence[Outputs]) -> Losses:
        """Of outputs for the same batches. Infinite where shapes or infinities differ, where a number became
        none, and where nothing was one; NaN of the dense model are left out."""
        told, constant = {}, []
        for part in self.parts:
            variance, square = (float(rows.sum()) for rows in self._energies[part])
            error = float(self._errors(part, found).sum())
            if variance <= CONSTANT * square:
                constant.append(part.name)
                variance = square
            told[part.name] = error / variance if variance else float("inf") if error else 0.0
            if not self._is_number(part):
                told[part.name] = float("inf")
        return Losses(told, tuple(constant))

    def loss(self, found: Sequence[Outputs]) -> float:
        """The mean over parts: what allocators, rehearsals and choices of types minimise."""
        return self.losses(found).mean

    def rows(self, part: Part, found: Sequence[Outputs]) -> tuple[np.ndarray, np.ndarray]:
        """(squared error, variance) of every row of the outputs' first axis: what a bootstrap over samples draws."""
        return self._errors(part, found), self._energies[part][0]

    def lengths(self, part: Part) -> list[int]:
        """How many rows each batch has in `rows`."""
        blocks = [part.of(np.asarray(batch[part.output])) for batch in self.outputs]
        return [len(block) if block.ndim and len(block) else 1 for block in blocks]

    def _errors(self, part: Part, found: Sequence[Outputs]) -> np.ndarray:
        """By row; infinite where shapes or infinities differ, and where what was a number is none."""
        rows = []
        for ours, theirs in zip(self.outputs, found, strict=True):
            dense, other = part.of(ours[part.output]), theirs.get(part.output)
            if not isinstance(other, np.ndarray) or other.shape != ours[part.output].shape:
                return np.array([np.inf])
            block, endless = part.of(other), np.isinf(dense)
            if endless.any() and not np.array_equal(block[endless], dense[endless]):
                return np.array([np.inf])
            with np.errstate(invalid="ignore", over="ignore"):
                rows.append(_energy(np.subtract(block, dense, dtype=np.float64), np.isfinite(dense)))
        return np.asarray(np.nan_to_num(np.concatenate(rows), nan=np.inf, posinf=np.inf))

    @cached_property
    def _energies(self) -> dict[Part, tuple[np.ndarray, np.ndarray]]:
        return {part: self._energies_of(part) for part in self.parts}

    def _energies_of(self, part: Part) -> tuple[np.ndarray, np.ndarray]:
        """By row (about its channel's mean, about zero); channels of the part's last cut axis, else axis 1.

        With fewer than ENOUGH values to a channel its mean says little: then about the mean of the whole part.
        """
        blocks = [part.of(np.asarray(batch[part.output])).astype(np.float64) for batch in self.outputs]
        axis = _channels_of(part)
        same = len({block.shape[1:] for block in blocks}) == 1 and blocks[0].ndim > axis
        same = same and _are_enough(blocks, axis)
        others = tuple(n for n in range(blocks[0].ndim) if n != axis) if same else None
        total = sum(np.where(np.isfinite(block), block, 0.0).sum(axis=others) for block in blocks)
        mean = np.asarray(total / np.maximum(sum(np.isfinite(block).sum(axis=others) for block in blocks), 1))
        if same:
            mean = mean.reshape([-1 if n == axis else 1 for n in range(blocks[0].ndim)])
        squares = [_energy(block, np.isfinite(block)) for block in blocks]
        with np.errstate(invalid="ignore"):
            variances = [_energy(block - mean, np.isfinite(block)) for block in blocks]
        return np.concatenate(variances), np.concatenate(squares)


def _channels_of(part: Part) -> int:
    return part.ranges[-1][0] if part.ranges else 1


def _are_enough(blocks: Sequence[np.ndarray], axis: int) -> bool:
    return bool(sum(block.size for block in blocks) >= ENOUGH * blocks[0].shape[axis])


def _energy(array: np.ndarray, where: np.ndarray) -> np.ndarray:
    """The sum of squares of every row, of entries that were numbers in the dense model's output."""
    numbers = array if where.all() else np.where(where, array, 0.0)
    flat = numbers.reshape(len(numbers), -1) if numbers.ndim and len(numbers) else numbers.reshape(1, -1)
    return np.asarray(np.einsum("ij,ij->i", flat, flat))
