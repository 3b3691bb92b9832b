"""Sums over rows from which every layer-wise method starts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

_ROWS = 256
_TOGETHER = 4096
"""Rows that are multiplied at once: fewer are summed slower than they are multiplied."""
_CHUNK = 64 << 20
"""Bytes of rows at once."""


@dataclass
class Moments:
    """Moments of a layer's rows x and, where given, of the outputs y that they should produce.

    `xx` (groups, columns, columns), `x` (groups, columns), `yx` (groups, outputs, columns), `y` and `yy`
    (groups, outputs): sums over `rows`, no whole number where these have a weight.
    """

    xx: np.ndarray
    x: np.ndarray
    yx: np.ndarray
    y: np.ndarray
    yy: np.ndarray
    rows: float = 0

    @staticmethod
    def empty(groups: int, columns: int, outputs: int = 0) -> Moments:
        return Moments(
            np.zeros((groups, columns, columns)),
            np.zeros((groups, columns)),
            np.zeros((groups, outputs, columns)),
            np.zeros((groups, outputs)),
            np.zeros((groups, outputs)),
        )

    def add(self, rows: np.ndarray, targets: np.ndarray | None = None) -> None:
        """Rows (groups, rows, columns) and targets (groups, rows, outputs)."""
        self.xx += np.matmul(rows.transpose(0, 2, 1), rows)  # of a matrix with itself: half the work
        self.x += rows.sum(axis=1, dtype=np.float64)
        self.rows += rows.shape[1]
        if targets is not None:
            self.yx += np.matmul(targets.transpose(0, 2, 1), rows)
            self.y += targets.sum(axis=1, dtype=np.float64)
            for start in range(0, targets.shape[1], _ROWS):  # in float64 all at once leave the caches
                self.yy += np.square(targets[:, start : start + _ROWS], dtype=np.float64).sum(axis=1)

    def __add__(self, other: Moments) -> Moments:
        """The moments of both's rows."""
        return Moments(
            self.xx + other.xx,
            self.x + other.x,
            self.yx + other.yx,
            self.y + other.y,
            self.yy + other.yy,
            self.rows + other.rows,
        )

    def weighted(self, weight: float) -> Moments:
        """The moments where every row counts `weight` times."""
        xx, x, yx, y, yy = (part * weight for part in (self.xx, self.x, self.yx, self.y, self.yy))
        return Moments(xx, x, yx, y, yy, self.rows * weight)

    def centred(self) -> Moments:
        """The moments of the deviations from the means."""
        rows = max(self.rows, 1)
        return Moments(
            self.xx - self.x[:, :, None] * self.x[:, None, :] / rows,
            np.zeros_like(self.x),
            self.yx - self.y[:, :, None] * self.x[:, None, :] / rows,
            np.zeros_like(self.y),
            np.maximum(self.yy - np.square(self.y) / rows, 0.0),
            self.rows,
        )

    @property
    def mean(self) -> np.ndarray:
        """(groups, columns)."""
        return np.asarray(self.x / max(self.rows, 1))

    @property
    def target_mean(self) -> np.ndarray:
        """(groups, outputs)."""
        return np.asarray(self.y / max(self.rows, 1))

    @property
    def second(self) -> np.ndarray:
        """E[x x^T], (groups, columns, columns)."""
        return np.asarray(self.xx / max(self.rows, 1))

    def covariance(self) -> np.ndarray:
        """(groups, columns, columns)."""
        return self._centred(self.second)

    def into_covariance(self) -> np.ndarray:
        """The covariance in the place of `xx`, which is spent: of wide layers one array is much."""
        self.xx /= max(self.rows, 1)
        return self._centred(self.xx)

    def _centred(self, second: np.ndarray) -> np.ndarray:
        mean = self.mean
        for start in range(0, mean.shape[1], _ROWS):  # a product of the means at once would double the memory
            rows = slice(start, start + _ROWS)
            second[:, rows] -= mean[:, rows, None] * mean[:, None, :]
        return second

    def cross_covariance(self) -> np.ndarray:
        """Of targets with rows: (groups, outputs, columns)."""
        cross = self.yx / max(self.rows, 1)
        return np.asarray(cross - self.target_mean[:, :, None] * self.mean[:, None, :])

    def target_variance(self) -> np.ndarray:
        """(groups, outputs)."""
        return np.asarray(np.maximum(self.yy / max(self.rows, 1) - np.square(self.target_mean), 0.0))


def together(
    parts: Iterable[tuple[np.ndarray, ...]], axes: tuple[int, ...]
) -> Iterator[tuple[np.ndarray, ...]]:
    """Parts that stand one behind the other along these axes, the first of them rows (groups, rows, columns): joined
    until there are enough rows for a product. Batches may be single samples."""
    waiting: list[tuple[np.ndarray, ...]] = []
    for part in parts:
        waiting.append(part)
        if sum(w[0].shape[1] for w in waiting) >= _TOGETHER or sum(w[0].nbytes for w in waiting) >= _CHUNK:
            yield _joined(waiting, axes)
            waiting = []
    if waiting:
        yield _joined(waiting, axes)


def _joined(parts: list[tuple[np.ndarray, ...]], axes: tuple[int, ...]) -> tuple[np.ndarray, ...]:
    if len(parts) == 1:
        return parts[0]
    return tuple(
        np.concatenate(same, axis) for same, axis in zip(zip(*parts, strict=True), axes, strict=True)
    )
