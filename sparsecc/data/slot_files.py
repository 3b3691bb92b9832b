"""`--slots FILE`: which slots a method of the user's own keeps, by tensor.

A name is a tensor of the model, with `:AXIS` behind it where the values are of one axis, or a module that holds one
layer. A value is the numbers of the slots that stay, a mask of an axis (true or other than zero stays), or a mask of
the tensor's whole shape, of which slots go that are zero throughout.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from sparsecc.data.array_files import BROKEN, arrays_in
from sparsecc.errors import InputError
from sparsecc.escaping import one_line, quoted
from sparsecc.ir.file_names import origin_of, turned
from sparsecc.system.plain_json import read_json

REMEDY = "write {tensor: [slots that stay]} as .json, or arrays by tensor with numpy.savez"


_MOST = 1 << 31
"""No axis has so many slots."""


def read_slots(path: Path) -> Mapping[str, np.ndarray]:
    """By name a mask (boolean, of any rank) or the numbers of slots that stay (integers, one axis).

    InputError for a file of another kind, and for values that are neither.
    """
    suffix = path.suffix.lower()
    if suffix == ".npz":
        given = _arrays(path)
    elif suffix == ".json":
        given = {name: _listed(path, name, value) for name, value in read_json(path, REMEDY).items()}
    else:
        raise InputError(f"--slots {one_line(str(path), 120)}: {suffix or 'no suffix'} is not read: {REMEDY}")
    if not given:
        raise InputError(f"--slots {one_line(str(path), 120)} names nothing: {REMEDY}")
    return {name: _meant(path, name, array) for name, array in given.items()}


def in_own_names(slots: Mapping[str, np.ndarray], model: ir.Model) -> dict[str, np.ndarray]:
    """What is said of the file's tensors, said of those of the (normalised) model: some were turned around."""
    known, found = turned(model), {}
    for name, given in slots.items():
        tensor, _, tail = name.rpartition(":")
        stem = tensor if tail.isdigit() else name
        value = known.get(stem) if name not in model.graph.initializers else None
        origin = origin_of(value) if value is not None else None
        if value is None or origin is None:
            found[name] = given
        elif tail.isdigit() and stem != name and int(tail) in origin.order:
            found[f"{value.name}:{origin.order.index(int(tail))}"] = given
        else:
            is_whole = given.ndim == len(origin.order) > 1
            found[value.name or ""] = given.transpose(origin.order) if is_whole else given
    return found


def _arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        return arrays_in(path)
    except BROKEN as e:
        raise InputError(f"--slots {path}: not readable: {one_line(str(e), 120)}: {REMEDY}") from e


def _listed(path: Path, name: str, value: Any) -> np.ndarray:
    """A list of JSON, nested as deep as a tensor has axes."""
    if isinstance(value, list):
        try:
            return np.array(value) if value else np.zeros(0, dtype=np.int64)
        except (ValueError, OverflowError) as e:
            raise _neither(path, name) from e
    raise _neither(path, name)


def _meant(path: Path, name: str, array: np.ndarray) -> np.ndarray:
    if array.dtype.kind == "b" or array.dtype.kind == "f" or (array.dtype.kind in "iu" and array.ndim > 1):
        return np.asarray(array != 0)
    if (
        array.dtype.kind in "iu"
        and array.ndim == 1
        and (array.size == 0 or 0 <= array.min() <= array.max() < _MOST)
    ):
        return array.astype(np.int64)
    raise _neither(path, name)


def _neither(path: Path, name: str) -> InputError:
    shown = one_line(str(path), 120)
    return InputError(
        f"--slots {shown}: {quoted(name)} holds neither a mask nor numbers of slots that stay: {REMEDY}"
    )
