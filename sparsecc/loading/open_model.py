"""The front door: from a file of a stranger to a model that is safe to work on. Run it inside a worker.

Nothing else in sparsecc parses a model file. What comes out has been checked by `preflight`; its external
data is mapped by `external`, the only code that opens a file by a name out of a model.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from sparsecc.errors import InputError
from sparsecc.escaping import one_line
from sparsecc.loading.external import ExternalFiles
from sparsecc.loading.file_type import HEAD_BYTES, looks_like
from sparsecc.loading.limits import DEFAULT_LIMITS, Limits
from sparsecc.loading.validate import preflight
from sparsecc.loading.weights_apart import taken_apart

_OPEN_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


@dataclass(frozen=True)
class OpenedModel:
    """A checked model: its graphs sorted, its external data (if any) opened; `notes` say what was mended."""

    proto: onnx.ModelProto
    files: ExternalFiles
    notes: tuple[str, ...]


def open_model(path: Path, limits: Limits = DEFAULT_LIMITS, *, apart: bool = False) -> OpenedModel:
    """Read and check a model file. InputError, one line, for anything that is not a sound ONNX model.

    With `apart` large weights of the file are not read: tensors refer to `files`, as to external data.
    """
    try:
        with _opened(path, limits) as (fd, size):
            if apart and (found := taken_apart(fd, size)):
                return _checked(found.message, ExternalFiles(path.parent, limits, found.weights), limits)
            data = _read(fd, size)
        return open_bytes(data, limits, folder=path.parent)
    except InputError as e:
        raise InputError(f"{one_line(str(path), 120)}: {e}") from e


def open_bytes(data: bytes, limits: Limits = DEFAULT_LIMITS, folder: Path | None = None) -> OpenedModel:
    """Check a model already in memory; without a `folder` it may have no external data."""
    if kind := looks_like(data[:HEAD_BYTES], len(data), data if data[:2] == b"PK" else b""):
        raise InputError(f"not an ONNX model but {kind}")
    return _checked(data, ExternalFiles(folder, limits), limits)


def _checked(data: bytes, files: ExternalFiles, limits: Limits) -> OpenedModel:
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError as e:
        raise InputError(
            "not an ONNX model, or a damaged, truncated or too deeply nested one: fetch or export it again"
        ) from e
    try:
        notes = preflight(model, files, limits)
    except UnicodeDecodeError as e:
        raise InputError(
            "a name in the model is not UTF-8: the file is damaged, fetch or export it again"
        ) from e
    return OpenedModel(model, files, tuple(notes))


def read_plain(path: Path, limits: Limits, formats: tuple[bytes, ...] = ()) -> bytes:
    """The bytes of a plain file no larger than the limit. A link is followed: the user named this file.

    InputError for what is certainly no ONNX model, unless bytes 4 to 8 are one of `formats`.
    """
    with _opened(path, limits, formats) as (fd, size):
        return _read(fd, size)


def _read(fd: int, size: int) -> bytes:
    with os.fdopen(fd, "rb", closefd=False) as file:
        return file.read(size)


@contextlib.contextmanager
def _opened(path: Path, limits: Limits, formats: tuple[bytes, ...] = ()) -> Iterator[tuple[int, int]]:
    """The descriptor and the size of a plain file that may be a model."""
    try:
        fd = os.open(path, _OPEN_FLAGS)
    except (OSError, ValueError) as e:
        why = e.strerror if isinstance(e, OSError) else str(e)
        raise InputError(f"cannot open the model: {one_line(why or str(e))}") from e
    try:
        facts = os.fstat(fd)
        if stat.S_ISDIR(facts.st_mode):
            raise InputError("is a folder: name the .onnx file in it")
        if not stat.S_ISREG(facts.st_mode):
            raise InputError("is not a plain file: write the model to a file first")
        _refuse_early(fd, facts.st_size, formats)
        if facts.st_size > limits.file_bytes:
            raise InputError(
                f"the file has {facts.st_size} bytes, over {limits.file_bytes}: store its weights as "
                "external data, or raise the limit file_bytes"
            )
        yield fd, facts.st_size
    finally:
        os.close(fd)


def _refuse_early(fd: int, size: int, formats: tuple[bytes, ...]) -> None:
    """Refuse what is certainly no model before its bytes are read, however large it is."""
    if not size:
        raise InputError(f"not an ONNX model but {looks_like(b'', 0)}")
    with mmap.mmap(fd, size, access=mmap.ACCESS_READ) as view:
        head = view[:HEAD_BYTES]
        tail = view[max(0, size - (1 << 20)) :] if head[:2] == b"PK" else b""
    if head[4:8] not in formats and (kind := looks_like(head, size, tail)):
        raise InputError(f"not an ONNX model but {kind}")
