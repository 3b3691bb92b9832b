"""What a file that is not an ONNX model seems to be, and what to do with it."""

from __future__ import annotations

import io
import zipfile

HEAD_BYTES = 4096
"""How much of a file `looks_like` wants to see."""

_TO_ONNX = "export it to ONNX first"
_PICKLE = "a pickle (it can run code when loaded): load it where you trust it and " + _TO_ONNX
_STARTS: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs", "a Git LFS pointer: fetch the real file with 'git lfs pull'"),
    (b"/annex/objects", "a git-annex pointer: fetch the real file with 'git annex get'"),
    (b"GGUF", "a GGUF file: " + _TO_ONNX + " from the original checkpoint"),
    (b"\x89HDF\r\n", "an HDF5 file (Keras): convert it with tf2onnx"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x1f\x8b", "gzip data: unpack it first"),
    (b"\x28\xb5\x2f\xfd", "zstd data: unpack it first"),
    (b"\xfd7zXZ", "xz data: unpack it first"),
    (b"BZh", "bzip2 data: unpack it first"),
    (b"\x7fELF", "a program or library"),
    (b"\x89PNG", "an image"),
    (b"\xff\xd8\xff", "an image"),
    (b"ftrt", "a TensorRT engine (it runs code when loaded): give the ONNX file it was built from"),
    (b"ptrt", "a TensorRT engine (it runs code when loaded): give the ONNX file it was built from"),
)
_TEXTS: tuple[tuple[bytes, str], ...] = (
    (b"<!doctype html", "an HTML page: the download gave a web page instead of the file"),
    (b"<html", "an HTML page: the download gave a web page instead of the file"),
    (b"<?xml", "XML (an OpenVINO model?): give the ONNX file it came from"),
    (b"<net", "XML (an OpenVINO model?): give the ONNX file it came from"),
    (b"{", "JSON text: give the .onnx file"),
    (b"[", "JSON text: give the .onnx file"),
    (b"ir_version:", "a model in protobuf text: turn it into binary ONNX first"),
    (b"<", "ONNX or markup text: turn it into binary ONNX first"),
)


def looks_like(head: bytes, size: int, tail: bytes = b"") -> str | None:
    """A clause such as "JSON text: give the .onnx file" for what is certainly not ONNX, else None.

    `head` is the file's first bytes, `size` its length, `tail` its last bytes (where a zip keeps its list).
    """
    if size == 0:
        return "empty: the download or export did not finish"
    for start, kind in _STARTS:
        if head.startswith(start):
            return kind
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return _zip_kind(tail)
    if len(head) > 1 and head[0] == 0x80 and 2 <= head[1] <= 5:
        return _PICKLE
    if head[4:8] in (b"TFL3", b"ORTM"):
        return (
            "a TensorFlow Lite model: " + _TO_ONNX
            if head[4:8] == b"TFL3"
            else "a model in ORT format: give the ONNX file"
        )
    if head[8:9] == b"{" and 2 <= int.from_bytes(head[:8], "little") <= size - 8:
        return "a safetensors file (weights without a graph): " + _TO_ONNX
    if head[257:262] == b"ustar":
        return "a tar archive: unpack it first"
    return _text_kind(head)


def _zip_kind(tail: bytes) -> str:
    try:
        with zipfile.ZipFile(io.BytesIO(tail)) as archive:
            names = {name.rpartition("/")[2] for name in archive.namelist()}
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, RuntimeError):
        names = set()
    if {"archive_format", "serialized_exported_program.json"} & names:
        return "a torch.export program (.pt2): export it with torch.onnx"
    if "constants.pkl" in names:
        return "a TorchScript archive (it runs code when loaded): export it with torch.onnx"
    if "data.pkl" in names:
        return "a torch checkpoint: load it into its module and export that with torch.onnx"
    return "a zip archive: unpack it first"


def _text_kind(head: bytes) -> str | None:
    start = head.lstrip()[:64].lower()
    if b"\x00" in head or not start or any(byte < 9 or 13 < byte < 32 for byte in head):
        return None
    for word, kind in _TEXTS:
        if start.startswith(word):
            return kind
    return None
