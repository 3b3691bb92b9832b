"""Cut one constant of a compiled graph to wrong slots, again and again, and count what the compile notices.

    python benchmarks/proof_power.py FOLDER [--json FILE] [--faults 6] [--seconds 500]

Every model below FOLDER is compiled at half its multiply-accumulates, up to its proof, once rightly and then with one
constant after another sliced from outside by the wrong slots of the right number. A fault is noticed where the compile
ends with an internal error, said where it goes on as `not proved`, and silent where it is `proved`. Results are stored
as they come, and known models are not run again: with `--seconds` in pieces. Exits with 1 where a fault was silent.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnx_ir as ir

from sparsecc.axes.algebra import Axis, Keep
from sparsecc.compilation import Compilation
from sparsecc.errors import InternalError, SparseccError
from sparsecc.graph import rewrite
from sparsecc.options import CompileOptions
from sparsecc.system.scratch import Scratch
from sparsecc.tasks.stages import STAGES, Work, prove_pruned, walk

OUT = Path("out/benchmarks/proof_power.json")
UP_TO_PROOF = STAGES[: 1 + [stage.run for stage in STAGES].index(prove_pruned)]
RIGHT = rewrite._slice_in_place


def verification(path: Path) -> dict[str, Any]:
    """What a compile says of its proof."""
    with tempfile.TemporaryDirectory() as folder:
        options = CompileOptions(ratio=0.5, target="onnx", measure=False, allocator="uniform")
        work = walk(Work(Compilation(path, options, Scratch(Path(folder)))), UP_TO_PROOF)
    return work.verification


@contextmanager
def recorded() -> Iterator[list[rewrite.Cut]]:
    """The constants that are cut meanwhile, in order."""
    cuts: list[rewrite.Cut] = []

    def cut(value: ir.Value, axes: list[Axis], keep: Keep) -> rewrite.Cut:
        cuts.append(RIGHT(value, axes, keep))
        return cuts[-1]

    with mock.patch.object(rewrite, "_slice_in_place", cut):
        yield cuts


@contextmanager
def sliced_wrongly(place: int, seed: int) -> Iterator[None]:
    """The cut at `place` takes other slots along one of its axes; what it reports stays right."""
    count = 0

    def cut(value: ir.Value, axes: list[Axis], keep: Keep) -> rewrite.Cut:
        nonlocal count
        made = RIGHT(value, axes, keep)
        if count == place:
            wrong = wrongly(made, seed)
            assert wrong is not None
            value.const_value = ir.Tensor(wrong, dtype=made.dense.dtype, name=value.name)
        count += 1
        return made

    with mock.patch.object(rewrite, "_slice_in_place", cut):
        yield


def wrongly(cut: rewrite.Cut, seed: int) -> np.ndarray | None:
    """The constant cut by other slots; None where all are alike."""
    generator = np.random.default_rng(seed)
    axis = int(generator.choice(sorted(cut.slots)))
    array = cut.dense.numpy()
    for other, index in cut.slots.items():
        array = np.take(array, index, axis=other) if other != axis else array
    kept = cut.slots[axis]
    wrong = np.sort(generator.permutation(array.shape[axis])[: kept.size])
    right, found = np.take(array, kept, axis=axis), np.take(array, wrong, axis=axis)
    if right.dtype.kind == "f" and np.allclose(right, found, rtol=0, atol=1e-4 * float(np.abs(right).max())):
        return None
    return None if np.array_equal(right, found) else np.ascontiguousarray(found)


def tried(path: Path, faults: int) -> dict[str, Any]:
    """How many faults in one model were noticed, said and silent."""
    with recorded() as cuts:
        told = verification(path)
    row: dict[str, Any] = {"status": told["status"], "reason": told.get("reason"), "planted": told["planted"]}
    row |= {"tried": 0, "noticed": 0, "said": 0, "silent": []}
    order = np.random.default_rng(0).permutation(len(cuts))
    for place in (int(i) for i in order):
        if row["tried"] == faults:
            break
        if wrongly(cuts[place], place) is None:
            continue
        row["tried"] += 1
        try:
            with sliced_wrongly(place, place):
                found = verification(path)
        except InternalError:
            row["noticed"] += 1
            continue
        if found["status"] == "proved":
            row["silent"].append(cuts[place].value.name)
        else:
            row["said"] += 1
    return row


def main() -> None:
    """Run what is not known yet, then say how much is noticed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--json", type=Path, default=OUT)
    parser.add_argument("--faults", type=int, default=6, help="per model")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after so long")
    given = parser.parse_args()
    rows: dict[str, Any] = json.loads(given.json.read_text()) if given.json.exists() else {}
    given.json.parent.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + given.seconds
    for path in sorted(given.folder.rglob("*.onnx")):
        name = str(path.relative_to(given.folder))
        if name in rows or time.monotonic() > end:
            continue
        try:
            rows[name] = tried(path, given.faults)
        except SparseccError as e:
            rows[name] = {"error": str(e).replace(f"{given.folder}/", "")}  # no folder of this machine
        given.json.write_text(json.dumps(rows, indent=1))
    ran = {name: row for name, row in rows.items() if "error" not in row}
    total, noticed, said = (sum(row[key] for row in ran.values()) for key in ("tried", "noticed", "said"))
    silent = {name: row["silent"] for name, row in ran.items() if row["silent"]}
    print(*(f"{name}: not proved: {row['reason']}" for name, row in ran.items() if row["reason"]), sep="\n")
    print(*(f"{name}: silent: {', '.join(names)}" for name, names in silent.items()), sep="\n")
    print(
        f"{noticed} of {total} faults noticed, {said} said to be not proved, on {len(ran)} of {len(rows)} models"
    )
    sys.exit(bool(silent))


if __name__ == "__main__":
    main()
