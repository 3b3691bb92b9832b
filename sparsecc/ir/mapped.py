"""Files whose bytes are mapped piece by piece: a piece is in memory only while an array over it lives."""

from __future__ import annotations

import mmap
import os
import sys
import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir

from sparsecc.system.memory import HELD


class MappedFile:
    """An open file of `size` bytes; it takes over the descriptor."""

    def __init__(self, fd: int, size: int) -> None:
        self.size = size
        self._fd = fd
        self._whole: np.ndarray | None = None
        weakref.finalize(self, os.close, fd)

    def read(self, offset: int, length: int) -> np.ndarray:
        """`length` bytes from `offset` as a read-only uint8 array, no copy.

        Large pieces have a mapping of their own, which goes with the array; small ones share one.
        """
        if not length:
            return np.empty(0, np.uint8)
        if length <= HELD:
            if self._whole is None:
                self._whole = self._map(0, self.size)
            return self._whole[offset : offset + length]
        start = offset - offset % mmap.ALLOCATIONGRANULARITY
        return self._map(start, offset + length - start)[offset - start :]

    def append(self, data: bytes | memoryview) -> int:
        """Add bytes at the end; where they begin."""
        offset, rest = self.size, memoryview(data).cast("B")
        while rest:
            written = os.pwrite(self._fd, rest, self.size)
            self.size, rest = self.size + written, rest[written:]
        return offset

    def _map(self, offset: int, length: int) -> np.ndarray:
        return np.frombuffer(
            mmap.mmap(self._fd, length, access=mmap.ACCESS_READ, offset=offset), dtype=np.uint8
        )


def stored_tensor(
    read: Callable[[], np.ndarray],
    dtype: ir.DataType,
    shape: ir.Shape,
    name: str | None,
    doc: str | None = None,
) -> ir.TensorProtocol:
    """A tensor over bytes that `read` gives. Large ones are read anew at every use, so that no page of theirs
    stays; sub-byte types are packed."""

    def tensor() -> ir.TensorProtocol:
        if dtype.bitwidth < 8:
            return ir.PackedTensor(read(), dtype, shape=shape, name=name, doc_string=doc)
        array = read().view(dtype.numpy()).reshape(shape.numpy())
        return ir.Tensor(array, dtype, shape=shape, name=name, doc_string=doc)

    if dtype.bitwidth * int(np.prod(shape.numpy(), dtype=np.int64)) <= 8 * HELD:
        return tensor()
    return ir.LazyTensor(tensor, dtype=dtype, shape=shape, name=name, doc_string=doc)


class Spool:
    """Where new large tensors wait for the model to be written: a nameless file in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: MappedFile | None = None

    def keep(self, tensor: ir.TensorProtocol) -> ir.TensorProtocol:
        """The same tensor, on disk where it is large."""
        if tensor.nbytes <= HELD:
            return tensor
        if self._file is None:
            with tempfile.TemporaryFile(dir=self._folder) as opened:
                self._file = MappedFile(os.dup(opened.fileno()), 0)
        file, length = self._file, tensor.nbytes
        offset = file.append(_bytes_of(tensor))
        return stored_tensor(
            lambda: file.read(offset, length), tensor.dtype, ir.Shape(tensor.shape.numpy()), tensor.name
        )


def _bytes_of(tensor: ir.TensorProtocol) -> bytes | memoryview:
    """As a file has them; of an array in memory, no copy."""
    if not isinstance(tensor, ir.Tensor) or tensor.dtype.bitwidth < 8 or sys.byteorder != "little":
        return tensor.tobytes()
    return np.ascontiguousarray(tensor.numpy()).reshape(-1).view(np.uint8).data
