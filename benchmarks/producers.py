"""Per exporter, how much of the files in the corpus and the materials can be pruned, and what holds the rest.

    python benchmarks/producers.py [--json FILE] [--worst 10] [NAME ...]

Every file with at least PARAMS float weights and a product is inspected. `free` is the share of its
multiply-accumulates that is gone when every free group is cut to one slot. The worst files are listed with
the reasons that hold most of their weights. Looks for the files in SPARSECC_SHARED or ../shared.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import onnx
from google.protobuf.message import DecodeError
from materials import shared

from sparsecc.errors import SparseccError
from sparsecc.worker import Worker

SMALLEST = 4096
"""Bytes below which a file has no weights to speak of."""
PARAMS = 1000
DEADLINE = 60.0
OUT = Path("out/benchmarks/producers.json")


def producer(path: Path) -> str:
    """The name that the exporter left in the file."""
    try:
        name: str = onnx.load(path, load_external_data=False).producer_name
    except DecodeError:
        return "unreadable"
    return name or "none"


def row(worker: Worker, root: Path, path: Path) -> dict[str, Any] | None:
    """What can go from one file; None where it has too few weights."""
    found = {"file": path.relative_to(root).as_posix(), "producer": producer(path)}
    request = {"model": str(path), "options": {}, "why": None}
    try:
        seen = worker.run("sparsecc.tasks.inspect:inspect", request, deadline=DEADLINE)
    except SparseccError as e:
        return {**found, "exit": e.exit_code, "line": str(e)[:300]}
    if seen["model"]["params"] < PARAMS or not seen["model"]["macs"]:
        return None
    pins = sorted(seen["pins"], key=lambda p: -p["params"])[:6]
    return {
        **found,
        "free": seen["prunable"]["macs_share"],
        "params": seen["model"]["params"],
        "macs": seen["model"]["macs"],
        "pins": [[p["reason"], p["what"], p["params"]] for p in pins],
        "unknown": seen["unknown_ops"],
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Per producer: files, refused, and the distribution of the share."""
    lines = ["| producer | files | refused | median | 10th percentile | least |", "|---|--:|--:|--:|--:|--:|"]
    for name, number in Counter(r["producer"] for r in rows).most_common():
        own = [r for r in rows if r["producer"] == name]
        shares = sorted(r["free"] for r in own if "free" in r)
        cells = (
            [f"{share:.0%}" for share in (median(shares), shares[len(shares) // 10], shares[0])]
            if shares
            else ["-"] * 3
        )
        lines.append(
            f"| {name} | {number} | {sum('free' not in r for r in own)} | " + " | ".join(cells) + " |"
        )
    return "\n".join(lines)


def worst(rows: Sequence[dict[str, Any]], number: int) -> str:
    """The files of which least can go, with what holds most of their weights."""
    lines = []
    for r in sorted((r for r in rows if "free" in r), key=lambda r: r["free"])[:number]:
        lines.append(f"{r['free']:6.1%} {r['file']} ({r['producer']}, {r['params']} parameters)")
        lines += [f"         {params:8d} {what}: {reason[:120]}" for reason, what, params in r["pins"][:4]]
    return "\n".join(lines)


def main() -> None:
    """Inspect every file, print the table and the worst."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="only files whose path has one of these in it")
    parser.add_argument("--json", type=Path, default=OUT)
    parser.add_argument("--worst", type=int, default=10)
    given = parser.parse_args()
    root = shared()
    files = [f for part in ("corpus", "materials") for f in sorted((root / part).rglob("*.onnx"))]
    files = [f for f in files if f.stat().st_size >= SMALLEST]
    rows = []
    with Worker(write=[Path(tempfile.gettempdir())]) as worker:
        for path in files:
            if given.names and not any(n in path.as_posix() for n in given.names):
                continue
            found = row(worker, root, path)
            rows += [found] if found is not None else []
    given.json.parent.mkdir(parents=True, exist_ok=True)
    given.json.write_text(json.dumps(rows, indent=1))
    print(table(rows))
    print(worst(rows, given.worst))


if __name__ == "__main__":
    main()
