"""What calibration found, by what went into it: for the trials of one compile, and for the next compile."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx_ir as ir
from onnx_ir import serde

from sparsecc.data.samples import Samples
from sparsecc.errors import SystemFailureError
from sparsecc.system.cache import Cache, cache_folder
from sparsecc.system.code_hash import code_hash
from sparsecc.system.versions import versions

ENTRY = 1 << 30
"""Bytes of what is worth keeping beyond a compile, per entry: the widest covariance takes 576 MiB."""
KEPT = 8 << 30
"""Bytes kept in all; what was used longest ago goes first."""


class Shelf:
    """Named files in a folder of this compile and, where they are not too large, in the user's cache.

    A cache that cannot be written costs time, not the compile: `refusal` then says why.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.refusal = ""
        self._cache: Cache | None = None
        folder.mkdir(parents=True, exist_ok=True)
        try:
            self._cache = Cache(cache_folder() / "calibration", KEPT)
        except SystemFailureError as e:
            self.refusal = str(e)

    def path(self, name: str) -> Path:
        """Where an entry of this compile lies, or would lie."""
        return self.folder / name

    def find(self, name: str) -> Path | None:
        """The file of an entry, taken from the cache where this compile has not made it; None without one."""
        path = self.path(name)
        if path.exists():
            return path
        found = self._cache.get(name) if self._cache is not None else None
        if found is None:
            return None
        path.write_bytes(found)
        return path

    def keep(self, name: str) -> None:
        """Bring an entry that was just written to `path(name)` into the cache."""
        path = self.path(name)
        if self._cache is None or self.refusal or path.stat().st_size > ENTRY:
            return
        try:
            self._cache.put(name, path.read_bytes())
        except SystemFailureError as e:
            self.refusal = str(e)


def digest_of(model: ir.Model, samples: Samples, collector: str, *about: object) -> str:
    """The hash of all that decides what calibration finds: the code of the module that collects, graph, weights,
    samples, versions, `about`."""
    digest = hashlib.sha256(code_hash(collector))
    digest.update(repr((sorted(versions().items()), samples.real, about)).encode())
    for part in _parts(model):
        digest.update(part)
    for batch in samples.batches:
        for name, array in sorted(batch.items()):
            digest.update(repr((name, array.dtype.str, array.shape)).encode())
            digest.update(_bytes(array))
    return digest.hexdigest()


def _parts(model: ir.Model) -> Iterable[bytes | memoryview]:
    """Every node and every weight of a model, in order."""
    yield repr(sorted(model.opset_imports.items())).encode()
    for node in model.graph:
        yield serde.serialize_node(node).SerializeToString(deterministic=True)
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        assert tensor is not None
        yield repr((name, tensor.dtype, tuple(tensor.shape))).encode()
        yield _bytes(tensor.numpy())


def _bytes(array: np.ndarray) -> bytes | memoryview:
    """The array's memory, without a copy where it lies in order."""
    if array.dtype.kind not in "fiub":
        return repr(array.tolist()).encode()
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
