"""A few inputs that a bundle keeps, with what the original and the compiled model gave for them: probes.npz.

They are random, rounded so that they take little room, and never the user's samples. Arrays are named in:NAME,
dense:NAME and told:NAME; of large outputs every so many-th number is kept.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sparsecc.errors import InputError
from sparsecc.escaping import one_line
from sparsecc.loss.measure import Outputs, Reference, quality

PROBES = "probes.npz"
LARGEST = 400_000
"""Bytes of the file: larger ones are not kept."""
NUMBERS = 8192
"""Of an output that are kept."""
UNPACKED = 64 << 20
"""Bytes that a file of a stranger's may hold unpacked."""
STEP = 0.5
"""What inputs are rounded to: some 3 bits a number when packed."""
FEW = 64
"""Numbers of an input that are not rounded."""
EQUAL_DB = 60.0
"""Quality beside the stored outputs that is rounding, on this processor or another."""
LIKE_DB, WORSE_DB = 20.0, 1.0
"""Integers round otherwise on other processors: outputs are then this like the stored ones, and by no more than this
less like the original's than those were."""


def rounded(feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Inputs that pack well. A few numbers may be scales or rates, and stay what they are."""
    return {
        name: (np.round(array / STEP) * STEP).astype(array.dtype)
        if array.dtype.kind == "f" and array.size > FEW
        else array
        for name, array in feeds.items()
    }


def keep(path: Path, feeds: Mapping[str, np.ndarray], dense: Outputs, found: Outputs) -> None:
    """Write inputs of the compiled model, the original's outputs and its own.

    Nothing where they are too large, or of a type that numpy has no name for.
    """
    arrays = {f"in:{name}": array for name, array in feeds.items()}
    for side, outputs in (("dense", dense), ("told", found)):
        arrays |= {f"{side}:{name}": _some(array) for name, array in outputs.items()}
    if not all(isinstance(array, np.ndarray) and array.dtype.kind in "fiub" for array in arrays.values()):
        return
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]
    if path.stat().st_size > LARGEST:
        path.unlink()


def _some(array: Any) -> Any:
    """At most NUMBERS of an array's, as a column; what is none stays."""
    return array.reshape(-1, 1)[:: -(-array.size // NUMBERS) or 1] if isinstance(array, np.ndarray) else array


def inputs_of(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Outputs]]:
    """(the inputs, {"dense", "told"}: outputs). InputError where the file is none of ours."""
    try:
        with zipfile.ZipFile(path) as packed:
            if sum(one.file_size for one in packed.infolist()) > UNPACKED:
                raise InputError(f"{PROBES} is over {UNPACKED >> 20} MiB unpacked: it is not one of ours")
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as e:
        raise InputError(f"{PROBES} cannot be read: {one_line(str(e), 120)}: compile again") from e
    sides: dict[str, dict[str, np.ndarray]] = {"in": {}, "dense": {}, "told": {}}
    for name, array in arrays.items():
        side, _, of = name.partition(":")
        if side in sides:
            sides[side][of] = array
    return sides.pop("in"), dict(sides)


def compared(stored: Mapping[str, Outputs], found: Outputs) -> tuple[bool, str]:
    """Whether a compiled model still gives what it was told of, and how that was found."""
    now, told, dense = {n: _some(array) for n, array in found.items()}, stored["told"], stored["dense"]
    if now.keys() != told.keys():
        return False, f"the outputs are {', '.join(sorted(now))}, not {', '.join(sorted(told))}"
    same = all(np.array_equal(now[n], told[n]) for n in told if told[n].dtype.kind != "f")
    beside = quality(Reference([told]).losses([now]).worst[1])
    if same and beside >= EQUAL_DB:
        return True, "the stored probes give what they gave, up to rounding"
    before, after = (quality(Reference([dense]).losses([side]).worst[1]) for side in (told, now))
    detail = f"on the stored probes outputs are within {beside:.1f} dB of what they were, "
    detail += f"within {after:.1f} dB of the original's ({before:.1f} dB was told)"
    return beside >= LIKE_DB and after >= before - WORSE_DB, detail
