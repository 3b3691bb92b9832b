"""What the layers of a dense model give on some samples: cuts of one model are repaired by the same values."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx_ir as ir

from sparsecc.graph.linear_layers import ROWS, ROWS_PER_COLUMN, LinearLayer, own_layer_of
from sparsecc.reconstruct.blockwise import needs_parts
from sparsecc.runtime.runner import Feeds
from sparsecc.runtime.segments import Walk


class DenseValues:
    """A dense model on some samples, walked for the first cut alone where memory has room for what all ask for."""

    def __init__(self, *, lasts: bool = True) -> None:
        self._lasts = lasts
        self._first: Walk | None = None

    def walk(
        self,
        dense: ir.Model,
        batches: Sequence[Feeds],
        wanted: Sequence[str],
        folder: Path,
        *,
        threads: int,
        memory: int,
    ) -> Walk:
        """Over the dense model, with these values held: the first one where it still has them, else a new one."""
        if self._first is not None and self._first.lasts(wanted):
            return self._first
        is_first = self._lasts and self._first is None
        lasting = [*wanted, *_sources(dense, memory)] if is_first else []
        name = "first" if is_first else "again"
        walk = Walk(
            dense, batches, folder / name, wanted=wanted, lasting=lasting, threads=threads, memory=memory
        )
        if is_first:
            self._first = walk
        return walk


def _sources(dense: ir.Model, memory: int) -> list[str]:
    """What layers read that may be too large to be held, and are repaired by their inputs."""
    layers = [layer for node in dense.graph if isinstance(layer := own_layer_of(node), LinearLayer)]
    return [
        layer.source
        for layer in layers
        if needs_parts(*layer.sizes[1:], max(ROWS, ROWS_PER_COLUMN * layer.sizes[2]), memory)
    ]
