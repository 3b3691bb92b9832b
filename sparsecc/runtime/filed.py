"""Arrays of a run that wait in a nameless file: each is mapped for as long as somebody looks at it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir

from sparsecc.ir.mapped import Spool


class Filed(Mapping[str, np.ndarray]):
    """Arrays by name, in the order in which they were `put`; floats of over a MiB are in a file of the system's
    temporary folder, which goes with this. What is no array stays as it is."""

    def __init__(self) -> None:
        self._spool = Spool(Path(tempfile.gettempdir()))
        self._read: dict[str, Callable[[], np.ndarray]] = {}

    def put(self, name: str, array: np.ndarray) -> None:
        if isinstance(array, np.ndarray) and array.dtype.kind == "f":
            self._read[name] = self._spool.keep(ir.Tensor(np.asarray(array, order="C"))).numpy
        else:
            self._read[name] = lambda: array

    def only(self, names: Iterable[str]) -> Filed:
        """Those of these names."""
        some = Filed()
        some._spool, some._read = self._spool, {name: self._read[name] for name in names}
        return some

    def __getitem__(self, name: str) -> np.ndarray:
        return self._read[name]()

    def __contains__(self, name: object) -> bool:
        """Mapping's own would read the array."""
        return name in self._read

    def __iter__(self) -> Iterator[str]:
        return iter(self._read)

    def __len__(self) -> int:
        return len(self._read)
