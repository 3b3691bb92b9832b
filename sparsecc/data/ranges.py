"""Ranges of activations that other tools found: calibration caches of TensorRT, encodings of AIMET, plain JSON."""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sparsecc.errors import InputError
from sparsecc.escaping import one_line, quoted
from sparsecc.system.plain_json import read_json

Ranges = dict[str, tuple[float, float]]
"""Value -> (lowest, highest) real number that its integers cover."""

_REMEDY = 'give a TensorRT calibration cache, an .encodings or .json file of AIMET, or {"value": [low, high]}'
_CACHE = re.compile(r"TRT-\d+-\w+")
_HEXADECIMAL = re.compile(r"[0-9a-fA-F]{8}")
_STEPS = 127
"""Of a TensorRT scale up to the largest number."""
_LARGEST = 64 << 20


def read_ranges(path: Path) -> Ranges:
    """The ranges of a file. InputError where it is none of the known forms, or holds a range that is none.

    TensorRT: a line `TRT-8601-EntropyCalibration2`, then `name: 3c010a14`, a big-endian float32 scale (symmetric).
    AIMET: `activation_encodings` by name with min and max (0.6), or as a list with scale and offset (1.0).
    """
    if not path.is_file():
        raise InputError(f"--ranges {one_line(str(path), 120)}: no such file: {_REMEDY}")
    with path.open("rb") as file:
        head = file.read(64)
    found = _cache(path) if _CACHE.match(head.decode("latin-1")) else _encodings(path)
    for name, (low, high) in found.items():
        if not (math.isfinite(low) and math.isfinite(high) and low <= high):
            raise InputError(f"--ranges: {quoted(name)} has the range {low} to {high}: {_REMEDY}")
    return found


def _cache(path: Path) -> Ranges:
    if path.stat().st_size > _LARGEST:
        raise InputError(f"--ranges {one_line(path.name, 80)} is over {_LARGEST >> 20} MiB: {_REMEDY}")
    found: Ranges = {}
    for number, line in enumerate(path.read_text("utf-8", "replace").splitlines()[1:], 2):
        name, colon, text = line.rpartition(":")
        if not line.strip():
            continue
        if not colon or not _HEXADECIMAL.fullmatch(text.strip()):
            raise InputError(
                f"--ranges: line {number} of {one_line(path.name, 80)} is no `name: 3c010a14`: {_REMEDY}"
            )
        largest = float(struct.unpack(">f", bytes.fromhex(text.strip()))[0]) * _STEPS
        found[name.strip()] = (-largest, largest)
    return found


def _encodings(path: Path) -> Ranges:
    data = read_json(path, _REMEDY)
    given = data.get("activation_encodings", data)
    try:
        return dict(_rows(given))
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError) as e:
        raise InputError(
            f"--ranges {one_line(path.name, 80)}: {one_line(str(e), 80)} is missing or no number: {_REMEDY}"
        ) from e


def _rows(given: Any) -> Iterator[tuple[str, tuple[float, float]]]:
    if isinstance(given, Sequence):
        for row in given:
            yield str(row["name"]), _from_grid(row)
        return
    for name, row in given.items():
        if isinstance(row, Sequence) and len(row) == 2 and not any(isinstance(end, Mapping) for end in row):
            yield name, (float(row[0]), float(row[1]))
        elif isinstance(row, Sequence) and len(row) == 1:
            yield name, (float(row[0]["min"]), float(row[0]["max"]))
        elif row:
            raise ValueError(f"a single range of {quoted(name)}")


def _from_grid(row: Mapping[str, Any]) -> tuple[float, float]:
    """(low, high) of a scale and an offset, the number that stands for the lowest one negated, of `bw` bits."""
    scale, offset = (float(row[key][0]) for key in ("scale", "offset"))
    if (bits := int(row["bw"])) not in range(1, 33):
        raise ValueError(f"a bitwidth of 1 to 32, not {bits}")
    return scale * offset, scale * (offset + 2**bits - 1)
