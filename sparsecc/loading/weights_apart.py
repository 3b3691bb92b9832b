"""The large weights of a model file that holds them itself, moved into a nameless file before anything is parsed:
protobuf would hold each twice while it reads, and the process all of them for as long as the model lives."""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from sparsecc.errors import InputError
from sparsecc.ir.mapped import MappedFile
from sparsecc.ir.save import varint
from sparsecc.loading.external import HELD_LOCATION
from sparsecc.loading.tensors import bytes_by_shape

FILE = 8 << 20
"""Bytes of a model file below which nothing is moved."""
LEAST = 1 << 16
"""Bytes of a weight that is moved."""

_GRAPH, _INITIALIZER, _RAW_DATA = 7, 5, 9
"""Numbers of ModelProto.graph, GraphProto.initializer and TensorProto.raw_data (onnx.proto)."""
_LENGTH = 2
"""The wire type of what stands behind its length."""
_FIXED = {1: 8, 5: 4}
_ALIGNED = 64
_LONGEST_VARINT = 10


@dataclass(frozen=True)
class Apart:
    """A model's message without its large weights, which refer to `HELD_LOCATION`, and the file that they are in."""

    message: bytes
    weights: MappedFile


def taken_apart(fd: int, size: int) -> Apart | None:
    """The model in the open file of `size` bytes; None where it is small, has no such weights, or is no sound message,
    which whoever parses it can tell better. InputError where it is written to meanwhile."""
    if size < FILE:
        return None
    with mmap.mmap(fd, size, access=mmap.ACCESS_READ) as view:
        try:
            pieces, moved = _divided(view, size)
        except _NoMessageError:
            return None
    if not moved:
        return None
    with tempfile.TemporaryFile() as file:
        end = 0
        for start, length, offset in moved:
            _copy(fd, start, length, file.fileno(), offset)
            end = offset + length
        return Apart(b"".join(pieces), MappedFile(os.dup(file.fileno()), end))


class _NoMessageError(Exception):
    """These bytes are no message of protobuf, or not one that is divided."""


def _divided(view: mmap.mmap, size: int) -> tuple[list[bytes], list[tuple[int, int, int]]]:
    """The message without the weights that are moved, in pieces, and (from, length, to) of these."""
    fields = [field for field in _fields(view, 0, size) if field.number == _GRAPH]
    if len(fields) != 1 or fields[0].kind != _LENGTH:
        raise _NoMessageError
    graph = fields[0]
    pieces: list[bytes] = []
    moved: list[tuple[int, int, int]] = []
    copied, place = graph.start, 0
    for field in _fields(view, graph.start, graph.end):
        if field.number != _INITIALIZER or field.end - field.start < LEAST:
            continue
        raw = _raw_data(view, field)
        slim = _referring(view, field, raw, place) if raw is not None else None
        if raw is None or slim is None:
            continue
        pieces += [view[copied : field.begin], b"\x2a" + varint(len(slim)) + slim]
        moved.append((raw.start, raw.end - raw.start, place))
        copied, place = field.end, -(-(place + raw.end - raw.start) // _ALIGNED) * _ALIGNED
    pieces.append(view[copied : graph.end])
    head = view[: graph.begin] + b"\x3a" + varint(sum(map(len, pieces)))
    return [head, *pieces, view[graph.end : size]], moved


def _raw_data(view: mmap.mmap, tensor: _Field) -> _Field | None:
    """The one raw_data of a tensor, where it is large."""
    found = [field for field in _fields(view, tensor.start, tensor.end) if field.number == _RAW_DATA]
    if len(found) != 1 or found[0].kind != _LENGTH or found[0].end - found[0].start < LEAST:
        return None
    return found[0]


def _referring(view: mmap.mmap, field: _Field, raw: _Field, place: int) -> bytes | None:
    """A tensor that refers to its values at `place`; None where they are not what its shape and type need."""
    tensor = onnx.TensorProto()
    try:
        tensor.ParseFromString(view[field.start : raw.begin] + view[raw.end : field.end])
    except DecodeError as e:
        raise _NoMessageError from e
    length = raw.end - raw.start
    plain = {"dims", "data_type", "name", "doc_string", "metadata_props"}
    if {kind.name for kind, _ in tensor.ListFields()} - plain or bytes_by_shape(tensor) != length:
        return None
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", HELD_LOCATION), ("offset", str(place)), ("length", str(length))):
        tensor.external_data.add(key=key, value=value)
    return bytes(tensor.SerializeToString())


@dataclass(frozen=True, slots=True)
class _Field:
    """A field of a message: its tag begins at `begin`, its content is from `start` to `end`."""

    number: int
    kind: int
    begin: int
    start: int
    end: int


def _fields(view: mmap.mmap, at: int, end: int) -> Iterator[_Field]:
    """The fields of the message between two places, as the wire has them."""
    while at < end:
        begin = at
        tag, at = _varint(view, at, end)
        kind = tag & 7
        if kind == 0:
            start, (_, at) = at, _varint(view, at, end)
        elif kind == _LENGTH:
            length, start = _varint(view, at, end)
            at = start + length
        elif kind in _FIXED:
            start, at = at, at + _FIXED[kind]
        else:
            raise _NoMessageError
        if at > end:
            raise _NoMessageError
        yield _Field(tag >> 3, kind, begin, start, at)


def _varint(view: mmap.mmap, at: int, end: int) -> tuple[int, int]:
    """A number in base 128, lowest digits first, and where it ends."""
    number = shift = 0
    for place in range(at, min(end, at + _LONGEST_VARINT)):
        digit = view[place]
        number |= (digit & 0x7F) << shift
        if digit < 0x80:
            return number, place + 1
        shift += 7
    raise _NoMessageError


def _copy(source: int, start: int, length: int, target: int, offset: int) -> None:
    """Bytes of one file to a place in another, within the kernel."""
    os.lseek(target, offset, os.SEEK_SET)
    while length:
        if not (copied := os.sendfile(target, source, start, length)):
            raise InputError("the file changes while it is read: try again when it is written")
        start, length = start + copied, length - copied
