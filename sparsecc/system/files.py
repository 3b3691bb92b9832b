"""Files: written whole, their sizes and their hashes."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from sparsecc.system.temp_folders import locked_file, sweep_files

_DRAFT = "draft"


def write_whole(path: Path, data: bytes) -> None:
    """Write a file that the user named, as `replace_whole`; a pipe or device as it is, a link's end."""
    if path.is_symlink() or (path.exists() and not path.is_file()):
        path.write_bytes(data)
        return
    replace_whole(path, data)


def replace_whole(path: Path, data: bytes, mode: int = 0o666) -> None:
    """Write a file so that at every moment the old one is there or the new one. No link is followed: one at `path` is
    replaced."""
    with draft_in(path.parent, mode) as (draft, number):
        with open(number, "wb", closefd=False) as file:
            file.write(data)
        os.replace(draft, path)


@contextlib.contextmanager
def draft_in(folder: Path, mode: int = 0o666) -> Iterator[tuple[Path, int]]:
    """A new file in `folder` under a name that nobody can know before, open for writing, and its descriptor.

    It is gone after the block unless it was moved; that of a killed process is swept by the next.
    """
    sweep_files(folder, _DRAFT)
    draft, number = locked_file(folder, _DRAFT, mode)
    try:
        yield draft, number
    finally:
        draft.unlink(missing_ok=True)
        os.close(number)


def size_of(folder: Path) -> int:
    """Bytes of the model files in a folder. An engine holds the same weights once more: it is not added."""
    kinds = (".onnx", ".data", ".ort")
    return sum(f.stat().st_size for f in folder.iterdir() if f.suffix in kinds)


def file_sha256(path: Path) -> str:
    """Hex digest of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
