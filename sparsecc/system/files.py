"""Files: their sizes and their hashes."""

from __future__ import annotations

import hashlib
from pathlib import Path


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that at every moment the old one is there or the new one; a pipe or device as it is."""
    if path.is_symlink() or (path.exists() and not path.is_file()):
        path.write_bytes(data)
        return
    draft = path.with_name(f".{path.name}.new")
    try:
        draft.write_bytes(data)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


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
