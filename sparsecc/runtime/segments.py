"""Running a graph piece by piece over all samples, so that every value is computed once and let go soon.

Layer-wise methods look at one layer's input after the other, and change weights on the way. A `Walk` holds
only the values that later nodes still read; beyond `memory` bytes they wait in files.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir import serde

from sparsecc.data.samples import Feeds
from sparsecc.ir.subgraphs import reads
from sparsecc.runtime.session import OrtRunner, open_session, session_options

MEMORY = 2 << 30
"""Bytes of values held at once."""
_PROTO_LIMIT = 1 << 30


class Store:
    """Arrays by (value, batch): in memory up to a bound, in files beyond it."""

    def __init__(self, folder: Path, memory: int) -> None:
        self._folder = folder
        self._memory = memory
        self._held: dict[tuple[str, int], np.ndarray | Path] = {}
        self._bytes = 0
        self._files = 0

    def put(self, name: str, batch: int, array: np.ndarray) -> None:
        self._drop(name, batch)
        if self._bytes + array.nbytes <= self._memory or array.dtype.kind not in "fiub":
            self._bytes += array.nbytes
            self._held[name, batch] = array
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"{self._files}.npy"
        self._files += 1
        np.save(path, array)
        self._held[name, batch] = path

    def get(self, name: str, batch: int) -> np.ndarray:
        held = self._held[name, batch]
        return held if isinstance(held, np.ndarray) else np.asarray(np.load(held, mmap_mode="r"))

    def has(self, name: str) -> bool:
        return (name, 0) in self._held

    def drop(self, name: str, batches: int) -> None:
        for batch in range(batches):
            self._drop(name, batch)

    def _drop(self, name: str, batch: int) -> None:
        held = self._held.pop((name, batch), None)
        if isinstance(held, Path):
            held.unlink()
        elif held is not None:
            self._bytes -= held.nbytes


class Walk:
    """One pass over a model's nodes in order, in segments chosen by the caller.

    `wanted` names values to hold until `release`, besides those that later nodes read.
    """

    def __init__(
        self,
        model: ir.Model,
        batches: Sequence[Feeds],
        scratch: Path,
        *,
        wanted: Iterable[str] = (),
        threads: int = 1,
        memory: int = MEMORY,
    ) -> None:
        self.model = model
        self.batches = len(batches)
        self.nodes = list(model.graph)
        self.place = {node: i for i, node in enumerate(self.nodes)}
        self.made_at = {v.name or "": i for i, node in enumerate(self.nodes) for v in node.outputs}
        self._position = 0
        self._threads = threads
        self._scratch = scratch
        self._store = Store(scratch / "values", memory)
        self._wanted = set(wanted)
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
        for name in [n for n, i in self._last.items() if i < until and n not in self._wanted]:
            self._store.drop(name, self.batches)
            del self._last[name]

    def release(self, name: str) -> None:
        """Let a wanted value go unless later nodes read it."""
        self._wanted.discard(name)
        if self._last.get(name, -1) < self._position:
            self._store.drop(name, self.batches)

    def branch(self, variant: ir.Model, segment: Sequence[ir.Node], kept: Sequence[str]) -> Iterator[Feeds]:
        """What nodes of a variant of the model make of the values that are held now, batch after batch.

        InputError where they do not run.
        """
        outside = _outside(variant, segment)
        sample = {name: self._store.get(name, 0) for name in outside}
        runner = self._runner(variant, segment, sample, kept)
        for batch in range(self.batches):
            yield runner.run({name: self._store.get(name, batch) for name in outside})

    def _run(self, segment: Sequence[ir.Node], kept: Sequence[str]) -> None:
        for batch, found in enumerate(self.branch(self.model, segment, kept)):
            for name in kept:
                self._store.put(name, batch, np.asarray(found[name]))

    def _runner(
        self, model: ir.Model, segment: Sequence[ir.Node], sample: Feeds, kept: Sequence[str]
    ) -> OrtRunner:
        """A session on the segment alone; its weights are read now, so that changes are seen."""
        proto = segment_proto(model, segment, sample, kept)
        options = session_options(threads=self._threads, level="basic")
        if proto.ByteSize() < _PROTO_LIMIT:
            return OrtRunner(open_session(proto.SerializeToString(), options), "calibration")
        path = self._scratch / "segment.onnx"
        self._scratch.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".onnx.data").unlink(missing_ok=True)  # a later save would be written behind it
        onnx.save(proto, path, save_as_external_data=True, location="segment.onnx.data")
        return OrtRunner(open_session(path, options), "calibration")


def _outside(model: ir.Model, segment: Sequence[ir.Node]) -> list[str]:
    """The values that a segment takes from before it."""
    inside = {v.name for node in segment for v in node.outputs}
    constants = model.graph.initializers
    names = [v.name or "" for node in segment for v in reads(node)]
    return [n for n in dict.fromkeys(names) if n not in inside and n not in constants]


def segment_proto(
    model: ir.Model, segment: Sequence[ir.Node], sample: Feeds, kept: Sequence[str]
) -> onnx.ModelProto:
    """A model of some nodes: `sample` gives its inputs with their types, `kept` its outputs."""
    constants = {}
    for node in segment:
        for value in reads(node):
            tensor = value.const_value
            if value.name in model.graph.initializers and value.name not in sample and tensor is not None:
                constants[value.name] = tensor
    inputs = [
        onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), None)
        for name, array in sample.items()
    ]
    outputs = [onnx.ValueInfoProto(name=name) for name in kept]
    tensors = []
    for name, tensor in constants.items():
        tensors.append(serde.serialize_tensor(ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=name)))
    graph = onnx.helper.make_graph(
        [serde.serialize_node(node) for node in segment], "segment", inputs, outputs, tensors
    )
    opsets = [onnx.helper.make_opsetid(domain, version) for domain, version in model.opset_imports.items()]
    version = min(int(model.ir_version or 10), 10)
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=version)
