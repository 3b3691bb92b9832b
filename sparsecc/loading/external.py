"""External data: the one place that opens a file because a model file says so.

A model names its data files itself, so a name is as untrusted as the model. The files must lie in the model's
folder; every step of the path is opened from the folder before it without following links, and all checks are
made on the open file, so that swapping names meanwhile changes nothing.
"""

from __future__ import annotations

import os
import re
import secrets
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sparsecc.errors import InputError
from sparsecc.escaping import one_line, quoted
from sparsecc.ir.mapped import MappedFile
from sparsecc.loading.limits import DEFAULT_LIMITS, Limits

if TYPE_CHECKING:
    import onnx

HELD_LOCATION = f"\0{secrets.token_hex(16)}"
"""The location of what was taken out of a model's file: no file has such a name, and no model can know it."""

_LONGEST_LOCATION = 1024
_DRIVE = re.compile(r"[A-Za-z]:")
_NUMBER = re.compile(r"[0-9]{1,19}", re.ASCII)
_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_FILE_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True)
class Extent:
    """Where a tensor's payload lies: `length` bytes at `offset` of the file at `location`."""

    location: str
    offset: int
    length: int


def extent_of(tensor: onnx.TensorProto, length: int) -> Extent:
    """Where an external tensor of `length` bytes (by shape and type) says that it lies; else InputError."""
    entries: dict[str, str] = {}
    for entry in tensor.external_data:
        if entry.key in entries:
            raise InputError(f"external data gives {quoted(entry.key)} twice: export the model again")
        entries[entry.key] = entry.value
    location = entries.get("location", "")
    offset = _number(entries.get("offset", "0"), "offset")
    if "length" in entries and _number(entries["length"], "length") != length:
        raise InputError(
            f"external data in {quoted(location)} gives a length of {one_line(entries['length'], 24)} bytes "
            f"where shape and type need {length}: export the model again"
        )
    return Extent(location, offset, length)


def _number(text: str, what: str) -> int:
    if not _NUMBER.fullmatch(text):
        raise InputError(f"the {what} of external data is {quoted(text, 40)}, not a number of bytes")
    return int(text)


@dataclass
class ExternalFiles:
    """The data files of one model, opened once each and mapped; None as folder refuses all external data."""

    folder: Path | None
    limits: Limits = DEFAULT_LIMITS
    held: MappedFile | None = None
    """The weights that were taken out of the model's file."""
    _opened: dict[str, MappedFile] = field(default_factory=dict)
    _used: int = 0

    def check(self, extent: Extent) -> None:
        """Open the extent's file and check its bounds; InputError unless it is a plain file inside."""
        size = self._file(extent.location).size
        if extent.offset + extent.length > size:
            raise InputError(
                f"external data file {quoted(extent.location)} has {size} bytes, a tensor wants "
                f"{extent.length} from {extent.offset}: fetch the whole file"
            )
        self._used += extent.length if extent.location != HELD_LOCATION else 0
        if self._used > self.limits.external_bytes:
            raise InputError(
                f"external data is over {self.limits.external_bytes} bytes: raise the limit external_bytes"
            )

    def payload(self, extent: Extent) -> np.ndarray:
        """The bytes of a checked extent as a read-only uint8 array over the mapped file, no copy."""
        return self._file(extent.location).read(extent.offset, extent.length)

    def whole(self, location: str, piece: int) -> Iterator[np.ndarray]:
        """All bytes of a file opened already, at most `piece` at once."""
        file = self._opened[location]
        for offset in range(0, file.size, piece):
            yield file.read(offset, min(piece, file.size - offset))

    def names(self) -> list[str]:
        """The locations opened so far, sorted."""
        return sorted(self._opened)

    def _file(self, location: str) -> MappedFile:
        if location == HELD_LOCATION and self.held is not None:
            return self.held
        if location not in self._opened:
            fd = self._open(location)
            try:
                size = _size_of(fd, location)
            except InputError:
                os.close(fd)
                raise
            self._opened[location] = MappedFile(fd, size)
        return self._opened[location]

    def _open(self, location: str) -> int:
        if self.folder is None:
            raise InputError(
                f"the model has external data in {quoted(location)}: give its path, not its bytes"
            )
        steps = _steps(location)
        folder = os.open(self.folder, _FOLDER_FLAGS)
        try:
            for step in steps[:-1]:
                inner = os.open(step, _FOLDER_FLAGS | os.O_NOFOLLOW, dir_fd=folder)
                os.close(folder)
                folder = inner
            return self._open_file(steps, folder)
        except OSError as e:
            raise InputError(f"cannot open external data file {quoted(location)}: {_why(e)}") from e
        finally:
            os.close(folder)

    def _open_file(self, steps: list[str], folder: int) -> int:
        try:
            return os.open(steps[-1], _FILE_FLAGS, dir_fd=folder)
        except OSError:
            if not self.limits.linked_data or len(steps) > 1:
                raise
            return self._open_blob(os.readlink(steps[-1], dir_fd=folder))

    def _open_blob(self, target: str) -> int:
        """Open `<repository>/blobs/<name>` for a link in `<repository>/snapshots/<revision>`, where the
        download cache keeps it; the link may point nowhere else."""
        assert self.folder is not None
        snapshot = Path(os.path.abspath(self.folder))
        blob = Path(os.path.normpath(snapshot / target))
        snapshots = [p for p in snapshot.parents if p.name == "snapshots"]
        if not snapshots or blob.parent != snapshots[0].parent / "blobs":
            raise InputError(f"external data is a link to {quoted(target)}, outside its download cache")
        folder = os.open(blob.parent, _FOLDER_FLAGS | os.O_NOFOLLOW)
        try:
            return os.open(blob.name, _FILE_FLAGS, dir_fd=folder)
        finally:
            os.close(folder)


def _steps(location: str) -> list[str]:
    """The steps of a location that stays inside the folder; InputError for any other."""
    wrong = ""
    if not location:
        wrong = "is empty"
    elif len(location.encode("utf-8", "surrogatepass")) > _LONGEST_LOCATION:
        wrong = f"is over {_LONGEST_LOCATION} bytes"
    elif "\\" in location or not location.isprintable():
        wrong = "has a backslash or a control character"
    elif location.startswith("/") or _DRIVE.match(location):
        wrong = "is absolute"
    steps = [step for step in location.split("/") if step != "."]
    if not wrong and (not steps or any(step in ("", "..") for step in steps)):
        wrong = "does not stay in the model's folder"
    if wrong:
        raise InputError(
            f"external data location {quoted(location)} {wrong}: data files must lie in the model's folder"
        )
    return steps


def _size_of(fd: int, location: str) -> int:
    facts = os.fstat(fd)
    if not stat.S_ISREG(facts.st_mode):
        raise InputError(f"external data {quoted(location)} is not a plain file")
    if facts.st_nlink != 1:
        raise InputError(
            f"external data file {quoted(location)} has {facts.st_nlink} names (hard links): "
            "copy it beside the model"
        )
    return facts.st_size


def _why(error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return "there is none; fetch it into the model's folder"
    if error.errno in (40, 20):  # ELOOP and ENOTDIR: what O_NOFOLLOW says of a link
        return "it is, or passes through, a link or something not a folder; copy the file beside the model"
    return one_line(error.strerror or str(error))
