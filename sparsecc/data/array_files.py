"""Arrays by name as one .npz file, for another process: nothing is packed, and nothing is pickled."""

from __future__ import annotations

import lzma
import os
import secrets
import stat
import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO

import numpy as np

from sparsecc.errors import InputError

BROKEN = (
    OSError, ValueError, EOFError, KeyError, AttributeError, RuntimeError, OverflowError, SyntaxError,
    tokenize.TokenError, zipfile.BadZipFile, zlib.error, lzma.LZMAError,
)  # fmt: skip
"""What numpy and zipfile raise for a file that is damaged, packed in a way that they do not know, or another's."""
_SLACK = 1 << 20
"""Bytes that a file of ours is longer than its arrays, at most."""


def arrays_in(path: Path) -> dict[str, np.ndarray]:
    """What numpy.savez wrote, by name, or numpy.save, as "". One of BROKEN for anything else."""
    if not path.is_file():
        raise ValueError("it is no file")
    loaded = np.load(path, allow_pickle=False)
    if isinstance(loaded, np.ndarray):
        return {"": loaded}
    with loaded:  # by the whole names of members: `x.npy` is both the file of x and, in its own file, a name
        found = {name: loaded[name] for name in loaded.zip.namelist()}
    if any(not isinstance(array, np.ndarray) for array in found.values()):
        raise ValueError("it holds what is no array")
    return {name.removesuffix(".npy"): array for name, array in found.items()}


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """InputError for an array of Python objects. Numbers that numpy has no name for (bfloat16) become float32.

    What stands at `path` is replaced, and not followed where it is a link: another process may write to its folder.
    """
    draft = path.with_name(f".{secrets.token_hex(16)}")
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "wb") as file:
        try:
            _pack(file, arrays)
        except BaseException:
            os.unlink(draft)
            raise
    os.replace(draft, path)


def _pack(whole: IO[bytes], arrays: Mapping[str, np.ndarray]) -> None:
    with zipfile.ZipFile(whole, "w", zipfile.ZIP_STORED) as packed:
        for name, array in arrays.items():
            if array.dtype.kind == "V" and array.dtype.names is None:
                array = array.astype(np.float32)
            if array.dtype.kind == "O" and all(isinstance(one, str) for one in array.ravel()):
                array = array.astype(str)
            try:
                with packed.open(f"{name}.npy", "w", force_zip64=True) as file:
                    np.lib.format.write_array(file, array, allow_pickle=False)
            except ValueError as e:
                raise InputError(f"'{name}' holds Python objects: give numbers or text") from e


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """What `write_arrays` wrote. InputError for anything else: a link, a pipe, a packed file, pickles."""
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
            facts = os.fstat(file.fileno())
            if not stat.S_ISREG(facts.st_mode):
                raise InputError(f"{path.name}: it is no file")
            with zipfile.ZipFile(file) as packed:
                if sum(one.file_size for one in packed.infolist()) > facts.st_size + _SLACK:
                    raise InputError(f"{path.name}: it is packed: arrays are handed over as they are")
                return {
                    one.filename.removesuffix(".npy"): _unpacked(packed, one) for one in packed.infolist()
                }
    except BROKEN as e:
        raise InputError(f"{path.name}: not readable as arrays: {' '.join(str(e).split())}") from e


def _unpacked(packed: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    with packed.open(member) as file:
        found: np.ndarray = np.lib.format.read_array(file, allow_pickle=False)
    return found
