"""A stranger's model, checked, as a copy that nobody else can change: what a runtime may open by its name.

The bytes of the copy are those that were checked, the model's and those of its external data, so that files swapped
in between change nothing, and nothing that the copy does not hold is beside it.
"""

from __future__ import annotations

import struct
from pathlib import Path

from sparsecc.errors import InputError
from sparsecc.escaping import one_line
from sparsecc.loading.external import ExternalFiles
from sparsecc.loading.limits import DEFAULT_LIMITS, Limits
from sparsecc.loading.open_model import OpenedModel, open_bytes, read_plain

ORT = b"ORTM"
"""Identifier of ONNX Runtime's own format, a FlatBuffer, at bytes 4 to 8."""
_HEAD = 8
_PIECE = 64 << 20


def require_sound(path: Path, limits: Limits = DEFAULT_LIMITS) -> None:
    """InputError, one line, unless the front door lets the model file pass."""
    _checked(path, limits)


def private_copy(path: Path, folder: Path, limits: Limits = DEFAULT_LIMITS) -> Path:
    """The copy of a model file (.onnx or .ort) in `folder`, made where it is not, its external data beside it.

    InputError, one line, for a file that is refused.
    """
    data, opened = _checked(path, limits)
    folder.mkdir(exist_ok=True)
    files = opened.files if opened is not None else ExternalFiles(None)
    for location in files.names():
        target = folder / location
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as file:
            for piece in files.whole(location, _PIECE):
                file.write(piece.tobytes())
    copy = folder / path.name
    copy.write_bytes(data)
    return copy


def _checked(path: Path, limits: Limits) -> tuple[bytes, OpenedModel | None]:
    """(its bytes, what the front door opened; None for the ORT format)."""
    try:
        data = read_plain(path, limits, formats=(ORT,))
        if data[4:_HEAD] != ORT:
            return data, open_bytes(data, limits, folder=path.parent)
        (root,) = struct.unpack_from("<I", data)
        if not _HEAD <= root <= len(data) - 4:
            raise InputError("a damaged model in ORT format: compile again with --emit ort")
        return data, None
    except InputError as e:
        shown = one_line(str(path), 120)
        raise e if str(e).startswith(shown) else InputError(f"{shown}: {e}") from e
