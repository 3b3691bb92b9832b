"""Which weights may stay: 2:4 and other N:M, blocks, or any, as masks over a matrix (out, reduction)."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from sparsecc.errors import InputError

FORMS = "2:4, any N:M such as 1:4, unstructured@0.5, or block8x4@0.5"


@dataclass(frozen=True)
class Pattern:
    """`n` of every `m` numbers along the reduction axis stay, or a share `keep` of blocks (rows, columns)."""

    text: str
    n: int = 0
    m: int = 0
    keep: float = 1.0
    block: tuple[int, int] = (1, 1)

    @property
    def is_grouped(self) -> bool:
        """Whether it is an N:M pattern."""
        return self.m > 0

    def mask(self, scores: np.ndarray, axis: int = 1) -> np.ndarray:
        """Booleans like `scores` (out, k): the best that the pattern lets stay. Ties keep the first.

        N:M patterns take scores of any rank and run along `axis`.
        """
        if not self.is_grouped:
            return self._block_mask(scores)
        kept = np.zeros(scores.shape, bool)
        places = [(slice(None),) * axis + (slice(i, None, self.m),) for i in range(self.m)]
        ahead = [np.zeros(scores[place].shape, np.uint8) for place in places]
        for i in range(self.m):
            for j in range(i + 1, self.m):
                later = scores[places[j]] > scores[places[i]]
                ahead[i] += later
                ahead[j] += ~later
        for place, number in zip(places, ahead, strict=True):
            kept[place] = number < self.n
        return kept

    def _block_mask(self, scores: np.ndarray) -> np.ndarray:
        height, width = self.block
        rows, columns = scores.shape
        tall, wide = -(-rows // height), -(-columns // width)
        padded = np.zeros((tall * height, wide * width))
        padded[:rows, :columns] = scores
        totals = padded.reshape(tall, height, wide, width).sum(axis=(1, 3)).reshape(-1)
        count = max(1, round(self.keep * totals.size))
        chosen = np.zeros(totals.size, bool)
        chosen[np.argsort(-totals, kind="stable")[:count]] = True
        whole = np.kron(chosen.reshape(tall, wide), np.ones((height, width), bool))
        return whole[:rows, :columns].astype(bool)


def parse_pattern(text: str) -> Pattern:
    """The pattern a text names. InputError lists the forms."""
    grouped = re.fullmatch(r"(\d+):(\d+)", text)
    if grouped:
        n, m = int(grouped[1]), int(grouped[2])
        if 0 < n < m <= 64:
            return Pattern(text, n, m)
    loose = re.fullmatch(r"(?:unstructured|block(\d+)x(\d+))@(0?\.\d+)", text)
    if loose:
        block = (int(loose[1] or 1), int(loose[2] or 1))
        if min(block) > 0:
            return Pattern(text, keep=1 - float(loose[3]), block=block)
    raise InputError(f"sparsity: unknown pattern '{text}': give {FORMS}")
