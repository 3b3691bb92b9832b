"""Compile architectures of the zoo at a ratio, from each exporter: what can go, what went, whether it is proved.

python benchmarks/architectures.py [--ratio 0.3] [--markdown] [NAME …]
"""

from __future__ import annotations

import argparse
import inspect
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import sparsecc
from sparsecc.errors import SparseccError
from tests.zoo import ZOO, hybrids, matching, oriented, points, synthesis, video
from tests.zoo.export import EXPORTERS, Exporter, ZooUnavailable, onnx_path

FAMILIES = (oriented, synthesis, matching, points, video, hybrids)
"""Those that are compiled where none is named."""


@dataclass(frozen=True)
class Row:
    """One entry from one exporter; shares are of the weights. `verdict` is the proof's, or what was raised."""

    free: float
    removed: float
    verdict: str


def compiled(name: str, exporter: Exporter, ratio: float) -> Row | None:
    """None where that exporter cannot export it."""
    try:
        path = onnx_path(name, exporter)
    except ZooUnavailable:
        return None
    with tempfile.TemporaryDirectory() as folder:
        try:
            free = sparsecc.inspect(path)["prunable"]["params_share"]
            made = sparsecc.compile(
                path, ratio=ratio, metric="params", output=f"{folder}/out", measure=False, next_steps=False
            )
        except SparseccError as e:
            return Row(0.0, 0.0, f"{type(e).__name__}: {e}")
        proof = made.report["verification"]
        return Row(
            free,
            1 - made.report["after"]["params"] / made.report["before"]["params"],
            f"{proof['status']} {proof.get('reason') or ''}".strip(),
        )


def form(name: str) -> str:
    """What an entry is in the form of, by its own words."""
    words = (inspect.getdoc(ZOO[name].make) or name).removeprefix("In the form of ").rstrip(".")
    return words.partition(":")[0]


def main() -> None:
    """One line an entry; in Markdown the rows of the table in docs/architectures.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--ratio", type=float, default=0.3)
    parser.add_argument("--markdown", action="store_true")
    given = parser.parse_args()
    own = [name for name, one in ZOO.items() if inspect.getmodule(one.make) in FAMILIES]
    for name in given.names or own:
        rows = {exporter: compiled(name, exporter, given.ratio) for exporter in EXPORTERS}
        if not given.markdown:
            print(name, rows, flush=True)
            continue
        cells = [
            "–" if row is None else f"{row.free:.1%}, −{row.removed:.1%}, {row.verdict}"
            for row in rows.values()
        ]
        print(f"| `{name}` | {form(name)} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
