"""What the layers of a dense model give on some samples: cuts of one model are repaired by the same values."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from sparsecc.graph.linear_layers import ROWS, ROWS_PER_COLUMN, LinearLayer, own_layer_of
from sparsecc.reconstruct.blockwise import needs_parts
from sparsecc.runtime.runner import Feeds
from sparsecc.runtime.segments import Store, Walk


class Rows:
    """What dense layers give at the rows that repair looks at, by layer, value and batch: float32 (rows, channels)."""

    def __init__(self, folder: Path, memory: int) -> None:
        self._store = Store(folder, memory)
        self._shapes: dict[tuple[str, int], tuple[int, ...]] = {}

    def put(self, key: str, batch: int, shape: tuple[int, ...], rows: np.ndarray) -> None:
        """`shape` is that of the whole value."""
        self._shapes[key, batch] = shape
        self._store.put(key, batch, rows)

    def shape(self, key: str, batch: int) -> tuple[int, ...] | None:
        """None where there are no rows."""
        return self._shapes.get((key, batch))

    def get(self, key: str, batch: int) -> np.ndarray:
        return self._store.get(key, batch)


class DenseSweep:
    """The dense model beside one cut of it: a walk, and the rows of its layers that earlier cuts left in `rows`.

    The walk goes on only for what is not there; `again` begins it anew where it is past what is asked for.
    """

    def __init__(
        self, dense: ir.Model, walk: Walk, rows: Rows | None = None, again: Callable[[], Walk] | None = None
    ) -> None:
        layers = (own_layer_of(node, may_share=True) for node in dense.graph)
        self._layers = {layer.name: layer for layer in layers if isinstance(layer, LinearLayer)}
        self._rows = rows
        self._again = again
        self.walk = walk

    def picks(self, layer: LinearLayer, data: np.ndarray, batch: int, seed: int) -> np.ndarray:
        """The rows of a cut layer that are looked at: those of the dense one, the same for every cut."""
        like = self._layers.get(layer.name, layer)
        return layer.picks(data, batch, self.walk.batches, seed, like.sizes)

    def shape(self, layer: LinearLayer, target: str, batch: int) -> tuple[int, ...]:
        """Of the dense value that a layer is to give."""
        known = None if self._rows is None else self._rows.shape(f"{layer.name} {target}", batch)
        return known or tuple(self._value(target, batch).shape)

    def rows(self, layer: LinearLayer, target: str, batch: int, picks: np.ndarray) -> np.ndarray:
        """The rows of that value that `picks` names: float32 (rows, channels)."""
        key = f"{layer.name} {target}"
        if self._rows is not None and self._rows.shape(key, batch) is not None:
            return self._rows.get(key, batch)
        value = self._value(target, batch)
        found = layer.outputs(value, picks)
        if self._rows is not None:
            self._rows.put(key, batch, tuple(value.shape), found)
        return found

    def _value(self, target: str, batch: int) -> np.ndarray:
        self.walk.reach(target)
        if not self.walk.has(target) and self._again is not None:
            self.walk = self._again()
            self.walk.reach(target)
        return self.walk.value(target, batch)


class DenseValues:
    """A dense model on some samples. Where it `lasts`, it is walked for the first cut alone: what its layers give is
    kept at the rows that are looked at, and what is read whole where memory has room for it."""

    def __init__(self, *, lasts: bool = True) -> None:
        self._lasts = lasts
        self._first: Walk | None = None
        self._rows: Rows | None = None

    def sweep(
        self,
        dense: ir.Model,
        batches: Sequence[Feeds],
        targets: Collection[str],
        whole: Collection[str],
        folder: Path,
        *,
        threads: int,
        memory: int,
    ) -> DenseSweep:
        """Beside one cut. `targets` are what layers are to give, `whole` the other values that it reads."""
        wanted = {*targets, *whole}

        def walk(name: str, lasting: Collection[str] = ()) -> Walk:
            where = folder / name
            return Walk(dense, batches, where, wanted=wanted, lasting=lasting, threads=threads, memory=memory)

        if not self._lasts:
            return DenseSweep(dense, walk("again"))
        sources = _sources(dense, memory)
        if self._first is None or self._rows is None:
            self._first = walk("first", [*whole, *sources])
            self._rows = Rows(folder / "rows", memory // 4)
            return DenseSweep(dense, self._first, self._rows)
        held = [*whole, *sources]
        reused = self._first if not held or self._first.lasts(held) else walk("again")
        return DenseSweep(dense, reused, self._rows, lambda: walk("again"))


def _sources(dense: ir.Model, memory: int) -> list[str]:
    """What layers read that may be too large to be held, and are repaired by their inputs."""
    layers = [layer for node in dense.graph if isinstance(layer := own_layer_of(node), LinearLayer)]
    return [
        layer.source
        for layer in layers
        if needs_parts(*layer.sizes[1:], max(ROWS, ROWS_PER_COLUMN * layer.sizes[2]), memory)
    ]
