"""Unlabelled inputs for training: pooled, shuffled, augmented where they are images, a tenth held out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor
from torch.nn import functional as F

from sparsecc.errors import InputError

HELD_OUT = 0.1
MOST_HELD_OUT = 512
SMALLEST_SIDE = 16
"""Images with shorter sides are not shifted."""

Feed = dict[str, Tensor]


class TrainingData:
    """Batches without end. Inputs whose first dimension is free are pooled and cut into batches anew."""

    def __init__(
        self,
        pieces: list[Feed],
        held_out: list[Feed],
        batch: int,
        seed: int,
        augment: bool,
        device: torch.device,
    ) -> None:
        self.pieces = pieces
        self.held_out = [{n: t.to(device) for n, t in feed.items()} for feed in held_out]
        self.size = batch
        self.augment = augment
        self.device = device
        self.random = torch.Generator().manual_seed(seed)
        self._order: list[int] = []
        self.count = sum(_rows(p) for p in pieces)
        self.held_out_count = sum(_rows(p) for p in held_out)
        self.pooled = len(pieces) == 1

    @staticmethod
    def of(
        feeds: Iterable[Mapping[str, np.ndarray]],
        model: ir.Model,
        *,
        batch: int,
        seed: int,
        augment: bool,
        device: torch.device,
    ) -> TrainingData:
        """Gather the feeds. InputError where there are too few to hold any out."""
        given = [{n: torch.from_numpy(np.ascontiguousarray(a)) for n, a in feed.items()} for feed in feeds]
        if not given:
            raise InputError("there are no calibration inputs to learn from: give --calib")
        if not _can_pool(given, model):
            if len(given) < 2:
                raise InputError("one fixed batch of inputs is too little to learn from: give at least two")
            held = max(1, round(HELD_OUT * len(given)))
            return TrainingData(given[held:], given[:held], batch, seed, augment, device)
        whole = {n: torch.cat([feed[n] for feed in given]) for n in given[0]}
        rows = _rows(whole)
        if rows < 2:
            raise InputError("one input is too little to learn from: give at least two")
        order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
        held = max(1, min(MOST_HELD_OUT, round(HELD_OUT * rows)))
        apart = [_taken(whole, part) for part in order[:held].split(batch)]
        return TrainingData(
            [_taken(whole, order[held:])], apart, min(batch, rows - held), seed, augment, device
        )

    def batch(self) -> Feed:
        """The next training batch, on the device."""
        if self.pooled:
            rows = _rows(self.pieces[0])
            if len(self._order) < self.size:
                self._order = torch.randperm(rows, generator=self.random).tolist()
            chosen, self._order = self._order[: self.size], self._order[self.size :]
            feed = _taken(self.pieces[0], torch.tensor(chosen))
        else:
            place = int(torch.randint(len(self.pieces), (), generator=self.random))
            feed = self.pieces[place]
        if self.augment:
            feed = self._varied(feed)
        return {n: t.to(self.device) for n, t in feed.items()}

    def plain(self, rows: int) -> list[Feed]:
        """The first training inputs as they are, in batches: so many rows, or pieces, at most."""
        if not self.pooled:
            return [{n: t.to(self.device) for n, t in feed.items()} for feed in self.pieces[:rows]]
        chosen = torch.arange(min(rows, _rows(self.pieces[0]))).split(self.size)
        return [{n: t.to(self.device) for n, t in _taken(self.pieces[0], c).items()} for c in chosen]

    def _varied(self, feed: Feed) -> Feed:
        """Images shifted and flipped, half of the batches mixed; the teacher answers for what comes out."""
        images = {n for n, t in feed.items() if _is_image(t)}
        if not images or len(images) != len(feed):
            return feed
        found = {n: self._moved(t) for n, t in feed.items()}
        if bool(torch.rand((), generator=self.random) < 0.5):
            return found
        share = float(torch.rand((), generator=self.random))
        order = torch.randperm(_rows(feed), generator=self.random)
        return {n: share * t + (1 - share) * t[order] for n, t in found.items()}

    def _moved(self, images: Tensor) -> Tensor:
        """Every image shifted on its own, half of them flipped; what a shift uncovers repeats the edge."""
        count, _, height, width = images.shape
        reach = max(1, min(height, width) // 8)
        padded = F.pad(images, [reach] * 4, mode="replicate")
        shifts = torch.randint(0, 2 * reach + 1, (2, count, 1), generator=self.random)
        down, right = shifts[0] + torch.arange(height), shifts[1] + torch.arange(width)
        flips = torch.rand((count, 1), generator=self.random) < 0.5
        right = torch.where(flips, right.flip(1), right)
        rows = torch.arange(count).reshape(-1, 1, 1)
        moved: Tensor = padded[rows, :, down[:, :, None], right[:, None, :]]
        return moved.permute(0, 3, 1, 2)  # channels last in memory: convolutions are faster so

    def position(self) -> dict[str, Any]:
        """Where the drawing of batches is."""
        return {"order": list(self._order), "random": self.random.get_state()}

    def go_to(self, position: Mapping[str, Any]) -> None:
        """Draw on from where `position` was taken."""
        self._order = list(position["order"])
        self.random.set_state(position["random"].cpu())


def _rows(feed: Mapping[str, Tensor]) -> int:
    return max((int(t.shape[0]) for t in feed.values() if t.dim()), default=1)


def _taken(feed: Mapping[str, Tensor], rows: Tensor) -> Feed:
    return {n: t[rows] for n, t in feed.items()}


def _is_image(tensor: Tensor) -> bool:
    return tensor.dim() == 4 and tensor.is_floating_point() and min(tensor.shape[-2:]) >= SMALLEST_SIDE


def _can_pool(feeds: Sequence[Feed], model: ir.Model) -> bool:
    """Whether every input's first dimension is free, and the other sizes agree over the feeds."""
    for value in model.graph.inputs:
        if value.is_initializer():
            continue
        if value.shape is None or not len(value.shape) or isinstance(value.shape[0], int):
            return False
    shapes = [{n: tuple(t.shape[1:]) for n, t in feed.items()} for feed in feeds]
    rows = [{int(t.shape[0]) for t in feed.values() if t.dim()} for feed in feeds]
    return all(s == shapes[0] for s in shapes) and all(len(r) == 1 for r in rows)
