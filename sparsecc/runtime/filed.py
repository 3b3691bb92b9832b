"""Arrays of a run that wait in a nameless file: each is mapped for as long as somebody looks at it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir

from sparsecc.ir.mapped import Spool


class Filed(Mapping[str, np.ndarray]):
    """Arrays by name, in the order in which they were `put`; floats of over a MiB are in a file of the system's
    temporary folder, which goes with this. What is no array stays as it is."""

    def __init__(self) -> None:
        self._spool = Spool(Path(tempfile.gettempdir()))
        self._held: dict[str, np.ndarray | ir.TensorProtocol] = {}

    def put(self, name: str, array: np.ndarray) -> None:
        is_plain = isinstance(array, np.ndarray) and array.dtype.kind == "f"
        self._held[name] = self._spool.keep(ir.Tensor(np.asarray(array, order="C"))) if is_plain else array

    def only(self, names: Iterable[str]) -> Filed:
        """Those of these names."""
        some = Filed()
        some._spool, some._held = self._spool, {name: self._held[name] for name in names}
        return some

    def __getitem__(self, name: str) -> np.ndarray:
        held = self._held[name]
        return held.numpy() if isinstance(held, ir.TensorProtocol) else held

    def __iter__(self) -> Iterator[str]:
        return iter(self._held)

    def __len__(self) -> int:
        return len(self._held)
