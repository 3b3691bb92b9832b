"""Running a graph piece by piece over all samples, so that every value is computed once and let go soon.

Layer-wise methods look at one layer's input after the other, and change weights on the way. A `Walk` holds
only the values that later nodes still read; beyond `memory` bytes they wait in files.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from sparsecc.ir.extract import extract, outside
from sparsecc.ir.subgraphs import reads
from sparsecc.runtime.runner import Feeds
from sparsecc.runtime.session import OrtRunner, open_session
from sparsecc.system.memory import keep_freed

MEMORY = 2 << 30
"""Bytes of values held at once."""
_TOGETHER = 8
"""Values that are asked for are made so many at a time: each piece of the graph costs a session."""


class Store:
    """Arrays by (value, batch): in memory up to a bound, in files beyond it."""

    def __init__(self, folder: Path, memory: int) -> None:
        self._folder = folder
        self._memory = memory
        self._held: dict[tuple[str, int], np.ndarray | Path] = {}
        self._bytes = 0
        self._files = 0
        self._filed = 0
        self.most = 0
        """The most bytes there were at a time, in memory and in files."""

    def put(self, name: str, batch: int, array: np.ndarray) -> None:
        """Sequences, which are lists of arrays, are always held."""
        self._drop(name, batch)
        if _is_tensor(array):
            self.most = max(self.most, self._bytes + self._filed + array.nbytes)
        if not _is_tensor(array) or self._bytes + array.nbytes <= self._memory:
            self._bytes += _size(array)
            self._held[name, batch] = array
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"{self._files}.npy"
        self._files += 1
        np.save(path, array)
        self._filed += path.stat().st_size
        self._held[name, batch] = path

    def get(self, name: str, batch: int) -> np.ndarray:
        held = self._held[name, batch]
        return np.asarray(np.load(held, mmap_mode="r")) if isinstance(held, Path) else held

    def has(self, name: str) -> bool:
        return (name, 0) in self._held

    @property
    def is_crowded(self) -> bool:
        """Whether values take more than half of the memory."""
        return 2 * (self._bytes + self._filed) > self._memory

    def drop(self, name: str, batches: int) -> None:
        for batch in range(batches):
            self._drop(name, batch)

    def _drop(self, name: str, batch: int) -> None:
        held = self._held.pop((name, batch), None)
        if isinstance(held, Path):
            self._filed -= held.stat().st_size
            held.unlink()
        elif held is not None:
            self._bytes -= _size(held)


def _is_tensor(value: Any) -> bool:
    """Whether it may wait in a file: sequences, strings and types that numpy does not know may not."""
    return isinstance(value, np.ndarray) and value.dtype.kind in "fiub"


def _size(value: Any) -> int:
    return value.nbytes if isinstance(value, np.ndarray) else 0


class Walk:
    """One pass over a model's nodes in order, in segments chosen by the caller.

    `wanted` names values to hold until `release`, besides those that later nodes read; those in `lasting` are held for
    good, for who comes this way again, as long as they take up to half of the memory. `order` is another order of the
    nodes than the model's.
    """

    def __init__(
        self,
        model: ir.Model,
        batches: Sequence[Feeds],
        scratch: Path,
        *,
        wanted: Iterable[str] = (),
        lasting: Iterable[str] = (),
        threads: int = 1,
        memory: int = MEMORY,
        level: str = "basic",
        order: Sequence[ir.Node] | None = None,
    ) -> None:
        keep_freed()
        self.model = model
        self.batches = len(batches)
        self.nodes = list(model.graph if order is None else order)
        self.place = {node: i for i, node in enumerate(self.nodes)}
        self.made_at = {v.name or "": i for i, node in enumerate(self.nodes) for v in node.outputs}
        self._position = 0
        self._threads = threads
        self._level = level
        self._store = Store(scratch / "values", memory)
        self._lasting = set(lasting)
        self._released = self._lasting - set(wanted)
        self._wanted = self._lasting | set(wanted)
        self._last = self._last_uses()
        for number, feeds in enumerate(batches):
            for name, array in feeds.items():
                self._store.put(name, number, array)

    def _last_uses(self) -> dict[str, int]:
        last: dict[str, int] = {}
        for i, node in enumerate(self.nodes):
            for value in reads(node):
                last[value.name or ""] = i
        return last

    def has(self, name: str) -> bool:
        """Whether a value has been computed and is still held."""
        return self._store.has(name)

    def value(self, name: str, batch: int) -> np.ndarray:
        """A value that has been computed and is still read by later nodes, or wanted."""
        return self._store.get(name, batch)

    def replace(self, name: str, batch: int, array: np.ndarray) -> None:
        """Give later nodes another array for a value that is held."""
        self._store.put(name, batch, array)

    @property
    def most(self) -> int:
        """The most bytes of values that there were at a time."""
        return self._store.most

    @property
    def position(self) -> int:
        """How many nodes have run."""
        return self._position

    def reach(self, name: str) -> None:
        """Run on until a value has been computed."""
        if name in self.made_at:
            self.advance(self.made_at[name] + 1)

    def advance(self, until: int) -> None:
        """Run the nodes before position `until` that have not run yet. InputError where they do not run."""
        if until <= self._position:
            return
        segment = self.nodes[self._position : until]
        made = [v.name or "" for node in segment for v in node.outputs if v.name]
        kept = [n for n in made if n in self._wanted or self._last.get(n, -1) >= until]
        if kept:
            self._run(segment, kept)
        self._position = until
        if self._lasting and self._store.is_crowded:
            self._lasting = set()
            for name in self._released:
                self.release(name)
        for name in [n for n, i in self._last.items() if i < until and n not in self._wanted]:
            self._store.drop(name, self.batches)
            del self._last[name]

    def lasts(self, names: Iterable[str]) -> bool:
        """Whether all these values are, or will be, held for good."""
        return bool(self._lasting) and self._lasting.issuperset(names)

    def release(self, name: str) -> None:
        """Let a wanted value go unless later nodes read it, or it lasts."""
        if name in self._lasting:
            self._released.add(name)
            return
        self._wanted.discard(name)
        if self._last.get(name, -1) < self._position:
            self._store.drop(name, self.batches)

    def branch(
        self,
        variant: ir.Model,
        segment: Sequence[ir.Node],
        kept: Sequence[str],
        constants: Sequence[Feeds] = ({},),
        level: str = "",
    ) -> Iterator[list[Feeds]]:
        """What nodes of a variant of the model make of the values that are held now, batch after batch, with each of
        these sets of constants in the place of the variant's own: all in one session.

        InputError where they do not run.
        """
        taken = [name for name in outside(variant, segment) if name not in constants[0]]
        sample = {name: self._store.get(name, 0) for name in taken}
        runner = self._runner(variant, segment, {**sample, **constants[0]}, kept, level or self._level)
        for batch in range(self.batches):
            held = {name: self._store.get(name, batch) for name in taken}
            yield [runner.run({**held, **given}) for given in constants]

    def _run(self, segment: Sequence[ir.Node], kept: Sequence[str]) -> None:
        for batch, (found,) in enumerate(self.branch(self.model, segment, kept)):
            for name in kept:
                self._store.put(name, batch, found[name])

    def _runner(
        self, model: ir.Model, segment: Sequence[ir.Node], sample: Feeds, kept: Sequence[str], level: str
    ) -> OrtRunner:
        """A session on the segment alone; its weights are read now, so that changes are seen."""
        proto = extract(model, segment, sample, kept)
        return open_session(proto, where="calibration", threads=self._threads, level=level, arena=False)


def activations(
    model: ir.Model,
    names: Iterable[str],
    batches: Sequence[Feeds],
    scratch: Path,
    *,
    memory: int = MEMORY,
    level: str = "basic",
) -> Iterator[tuple[str, np.ndarray]]:
    """(name, array) of the named values, which are inputs or made in the main graph, batch after batch.

    So many batches are walked together as `memory` has room for, one to learn how many these are. The model itself
    is not changed. InputError where it does not run.
    """
    copy = model.clone()
    copy.graph.sort()
    wanted, done, together = list(dict.fromkeys(names)), 0, 1
    while wanted and done < len(batches):
        few = batches[done : done + together]
        walk = Walk(copy, few, scratch, wanted=wanted, memory=memory, level=level)
        order = sorted(wanted, key=lambda name: walk.made_at.get(name, -1))
        for begun in range(0, len(order), _TOGETHER):
            group = order[begun : begun + _TOGETHER]
            walk.reach(group[-1])
            for name in group:
                yield from ((name, walk.value(name, batch)) for batch in range(walk.batches))
                walk.release(name)
        done += len(few)
        together = max(1, memory * len(few) // max(1, walk.most))
