"""Tensors of a model file: their bytes must be exactly what shape and type need. No payload is interpreted,
but for the indices of sparse tensors."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import onnx

from sparsecc.errors import InputError
from sparsecc.loading.external import ExternalFiles, extent_of
from sparsecc.loading.limits import Limits

T = onnx.TensorProto
_PACKED = {"INT4": 4, "UINT4": 4, "FLOAT4E2M1": 4, "INT2": 2, "UINT2": 2, "FLOAT6E2M3": 6, "FLOAT6E3M2": 6}
_BITS: dict[int, int] = {
    **dict.fromkeys((T.UINT8, T.INT8, T.BOOL), 8),
    **dict.fromkeys((T.UINT16, T.INT16, T.FLOAT16, T.BFLOAT16), 16),
    **dict.fromkeys((T.FLOAT, T.INT32, T.UINT32), 32),
    **dict.fromkeys((T.DOUBLE, T.INT64, T.UINT64, T.COMPLEX64), 64),
    T.COMPLEX128: 128,
    **{value: 8 for name, value in T.DataType.items() if name.startswith("FLOAT8")},
    **{value: _PACKED[name] for name, value in T.DataType.items() if name in _PACKED},
}
"""Bits of one element, by type."""

_FIELD_OF: dict[int, tuple[str, int]] = {
    T.FLOAT: ("float_data", 1),
    T.COMPLEX64: ("float_data", 2),
    T.DOUBLE: ("double_data", 1),
    T.COMPLEX128: ("double_data", 2),
    T.INT64: ("int64_data", 1),
    T.UINT32: ("uint64_data", 1),
    T.UINT64: ("uint64_data", 1),
    T.STRING: ("string_data", 1),
}
"""Where a type keeps its values when not in raw_data, and entries per element; the others use int32_data."""

MOST_AXES = 64
"""Axes that a NumPy array can have; no runtime takes as many."""

_MOST_OF_NOTHING = 1 << 58
"""What the other axes of an empty tensor may multiply to: NumPy counts their bytes."""

_TYPED_FIELDS = ("float_data", "int32_data", "string_data", "int64_data", "double_data", "uint64_data")


@dataclass
class TensorChecker:
    """Checks tensors of one model against its limits and its external files."""

    files: ExternalFiles
    limits: Limits
    _dense_bytes: int = field(default=0, init=False)

    def check(self, tensor: onnx.TensorProto, where: str) -> None:
        """InputError unless the payload is exactly what shape and type need."""
        kind = tensor.data_type
        if kind != T.STRING and kind not in _BITS:
            raise InputError(f"{where}: tensor type {kind} is not one of ONNX: export the model again")
        if tensor.HasField("segment"):
            raise InputError(f"{where}: segmented tensors are not supported: export the model again")
        count = element_count(tensor.dims, where)
        if tensor.data_location == T.EXTERNAL:
            self._check_external(tensor, where, count)
            return
        filled = [name for name in _TYPED_FIELDS if len(getattr(tensor, name))]
        raw = len(tensor.raw_data) if tensor.HasField("raw_data") else 0
        if len(filled) + (raw > 0) > 1:
            raise InputError(
                f"{where}: the tensor holds its values twice ({', '.join(filled)}): export again"
            )
        if filled or kind == T.STRING:
            self._check_typed(tensor, where, count, filled)
        elif raw != byte_count(kind, count):
            raise InputError(
                f"{where}: the tensor has {raw} bytes where shape and type need {byte_count(kind, count)}: "
                "the file is damaged, fetch or export it again"
            )

    def _check_external(self, tensor: onnx.TensorProto, where: str, count: int) -> None:
        if tensor.data_type == T.STRING:
            raise InputError(f"{where}: string tensors cannot be external data: export the model again")
        try:
            self.files.check(extent_of(tensor, byte_count(tensor.data_type, count)))
        except InputError as e:
            raise InputError(f"{where}: {e}") from e

    def _check_typed(self, tensor: onnx.TensorProto, where: str, count: int, filled: list[str]) -> None:
        name, per_element = _FIELD_OF.get(tensor.data_type, ("int32_data", 1))
        if filled not in ([], [name]):
            raise InputError(
                f"{where}: the tensor's values are in {filled[0]}, its type keeps them in {name}"
            )
        bits = _BITS.get(tensor.data_type, 8)
        needed = count * per_element if bits >= 8 else -(-count * bits // 8)
        if len(getattr(tensor, name)) != needed:
            raise InputError(
                f"{where}: the tensor has {len(getattr(tensor, name))} values, its shape needs {needed}: "
                "the file is damaged, fetch or export it again"
            )

    def check_sparse(self, sparse: onnx.SparseTensorProto, where: str) -> None:
        """InputError unless values, indices and shape fit each other and the dense form stays bounded."""
        self.check(sparse.values, where)
        self.check(sparse.indices, where)
        count = element_count(sparse.dims, where)
        stored = math.prod(sparse.values.dims)
        if len(sparse.values.dims) != 1 or stored > count or not sparse.dims:
            raise InputError(f"{where}: the sparse tensor's values do not fit its shape")
        if sparse.indices.data_type != T.INT64 or list(sparse.indices.dims) not in (
            [stored],
            [stored, len(sparse.dims)],
        ):
            raise InputError(
                f"{where}: the sparse tensor's indices must be int64, one or one per axis a value"
            )
        if sparse.values.data_type == T.STRING:
            raise InputError(f"{where}: sparse tensors of strings are not supported: export them dense")
        self._dense_bytes += byte_count(sparse.values.data_type, count)
        if self._dense_bytes > self.limits.dense_bytes:
            raise InputError(
                f"{where}: the sparse tensors are too large to be made dense: raise the limit dense_bytes"
            )
        indices = self.values(sparse.indices)
        bound = np.array(sparse.dims if indices.ndim == 2 else [count], np.int64)
        if ((indices < 0) | (indices >= bound)).any():
            raise InputError(f"{where}: an index of the sparse tensor is out of range")

    def values(self, tensor: onnx.TensorProto) -> np.ndarray:
        """The values of a checked int64 tensor."""
        shape = tuple(tensor.dims)
        if tensor.data_location == T.EXTERNAL:
            extent = extent_of(tensor, byte_count(T.INT64, math.prod(shape)))
            return self.files.payload(extent).view(np.int64).reshape(shape)
        if tensor.HasField("raw_data"):
            return np.frombuffer(tensor.raw_data, "<i8").reshape(shape)
        return np.array(tensor.int64_data, np.int64).reshape(shape)


def element_count(dims: object, where: str) -> int:
    """The product of the dimensions in unbounded integers; InputError when one is negative."""
    sizes = [int(d) for d in dims]  # type: ignore[attr-defined]
    if len(sizes) > MOST_AXES:
        raise InputError(f"{where}: the tensor has {len(sizes)} axes, over {MOST_AXES}: the file is damaged")
    if any(size < 0 for size in sizes):
        raise InputError(f"{where}: the tensor has a negative dimension: the file is damaged")
    if 0 in sizes and math.prod(size for size in sizes if size) > _MOST_OF_NOTHING:
        raise InputError(f"{where}: an empty tensor has axes too long for any memory: the file is damaged")
    return math.prod(sizes)


def byte_count(kind: int, count: int) -> int:
    """Bytes of `count` elements of a type, packed where it is narrower than a byte."""
    return -(-count * _BITS[kind] // 8)


def bytes_by_shape(tensor: onnx.TensorProto) -> int | None:
    """Bytes that a tensor's values take by its shape and type; None where these say nothing sound."""
    if tensor.data_type not in _BITS or any(size < 0 for size in tensor.dims):
        return None
    return byte_count(tensor.data_type, math.prod(tensor.dims))
