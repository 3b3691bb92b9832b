"""Is what a compile tells of its result true of inputs that it was never given?

    python benchmarks/told_quality.py [--pairs resnet20,...] [--seconds 240] [--json FILE]

Of a pair's samples the first five eighths are given as `--calib`; the rest is never shown to the tool. Every pair is
compiled at ratios 0.1, 0.3 and 0.5, to int8, and both. A row is right where the quality on the unseen inputs is
within 2 dB of what the report told, or within its interval. Rows are stored as they come and not made again.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import sparsecc
from benchmarks.accuracy_pairs import PAIRS
from sparsecc.errors import SparseccError
from sparsecc.graph.analysis import analyse
from sparsecc.loading.models import load_ir
from sparsecc.loading.normalise import normalise
from sparsecc.loss.parts import parts_of_outputs
from sparsecc.loss.quality import told
from sparsecc.runtime.session import open_session

STORE = Path(__file__).resolve().parents[1] / "out" / "benchmarks" / "told_quality.json"
JUDGED = (
    "digits_resnet",
    "digits_vit",
    "digits_lstm",
    "resnet20",
    "squeezenet",
    "resnet56",
    "mobilenetv2",
    "stories",
)
HOW: Mapping[str, Mapping[str, Any]] = {
    "0.1": {"ratio": 0.1},
    "0.3": {"ratio": 0.3},
    "0.5": {"ratio": 0.5},
    "int8": {"ratio": 0.0, "quantize": "int8"},
    "0.3 + int8": {"ratio": 0.3, "quantize": "int8"},
}
CLOSE = 2.0
"""Decibels between what was told and what is true that count as right."""


def row(name: str, how: str) -> dict[str, Any]:
    """One compile: the told quality with its interval, and that on inputs never given."""
    pair = PAIRS[name]()
    every = {n: np.concatenate([batch[n] for batch in pair.samples.batches]) for n in pair.samples.batches[0]}
    number = len(next(iter(every.values())))
    given = {n: array[: number * 5 // 8] for n, array in every.items()}
    unseen = [
        {n: array[i : i + 32] for n, array in every.items()} for i in range(number * 5 // 8, number, 32)
    ]
    with tempfile.TemporaryDirectory() as folder:
        np.savez(f"{folder}/calib.npz", **given)
        options: dict[str, Any] = {"calib": f"{folder}/calib.npz", "measure": False, **HOW[how]}
        try:
            made = sparsecc.compile(pair.model, output=f"{folder}/out", **options)
        except SparseccError as e:
            return {"pair": name, "how": how, "error": str(e)}
        dense, small = (
            open_session(path, threads=1) for path in (pair.model, Path(folder, "out/model.onnx"))
        )
        parts = parts_of_outputs(analyse(normalise(load_ir(pair.model))))
        facts = made.report["fidelity"]
        true = told([dense.run(one) for one in unseen], [small.run(one) for one in unseen], parts)
    return {
        "pair": name,
        "how": how,
        "samples": facts["samples"],
        "told_db": facts["quality_db"],
        "interval_db": facts.get("interval_db"),
        "unseen_db": true["quality_db"],
        "unseen_interval_db": true.get("interval_db"),
    }


def is_right(found: Mapping[str, Any]) -> bool:
    """Whether the told quality holds for unseen inputs."""
    low, high = found["interval_db"] or (np.inf, -np.inf)
    return abs(found["told_db"] - found["unseen_db"]) <= CLOSE or low <= found["unseen_db"] <= high


def main() -> None:
    """Make what is missing, and show all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--pairs", default=",".join(JUDGED))
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--json", type=Path, default=STORE)
    given = parser.parse_args()
    rows: list[dict[str, Any]] = json.loads(given.json.read_text()) if given.json.exists() else []
    done, begun = {(one["pair"], one["how"]) for one in rows}, time.monotonic()
    given.json.parent.mkdir(parents=True, exist_ok=True)
    for pair in given.pairs.split(","):
        for how in HOW:
            if (pair, how) in done or time.monotonic() - begun > given.seconds:
                continue
            rows.append(row(pair, how))
            given.json.write_text(json.dumps(rows, indent=1))
            print(rows[-1], flush=True)
    known = [one for one in rows if "told_db" in one]
    wrong = [f"{one['pair']} {one['how']}" for one in known if not is_right(one)]
    print(
        f"{len(known) - len(wrong)} of {len(known)} told within {CLOSE:g} dB or their interval; others: {wrong}"
    )


if __name__ == "__main__":
    main()
