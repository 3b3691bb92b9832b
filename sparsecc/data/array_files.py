"""Arrays by name as one .npz file, for another process: nothing is packed, and nothing is pickled."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sparsecc.errors import InputError

_SLACK = 1 << 20
"""Bytes that a file of ours is longer than its arrays, at most."""


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """InputError for an array of Python objects. Numbers that numpy has no name for (bfloat16) become float32."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as packed:
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
    """What `write_arrays` wrote. InputError for anything else: a link, a packed file, pickles."""
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
            with zipfile.ZipFile(file) as packed:
                held = sum(one.file_size for one in packed.infolist())
            if held > os.fstat(file.fileno()).st_size + _SLACK:
                raise InputError(f"{path.name}: it is packed: arrays are handed over as they are")
            file.seek(0)
            loaded: Any = np.load(file, allow_pickle=False)
            return {name: loaded[name] for name in loaded.files}
    except (OSError, ValueError, EOFError, KeyError, AttributeError, zipfile.BadZipFile) as e:
        raise InputError(f"{path.name}: not readable as arrays: {' '.join(str(e).split())}") from e
