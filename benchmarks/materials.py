"""Compile every real model of the shared materials and print what came of it.

    python benchmarks/materials.py [--ratio 0.5] [--measure] [--json FILE]

Looks for the materials in SPARSECC_SHARED or ../shared.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import sparsecc
from sparsecc.errors import SparseccError


def shared() -> Path:
    """The folder of shared materials."""
    return Path(os.environ.get("SPARSECC_SHARED") or Path(__file__).resolve().parents[1].parent / "shared")


def row(path: Path, ratio: float, measure: bool, folder: Path) -> dict[str, Any]:
    """Compile one model, verify its bundle against the original."""
    begun = time.perf_counter()
    out = folder / path.stem
    try:
        made = sparsecc.compile(path, ratio=ratio, measure=measure, output=out, force=True)
        assert made.bundle is not None
        sparsecc.verify(made.bundle, model=path)
    except SparseccError as e:
        return {
            "model": path.name,
            "exit": e.exit_code,
            "error": str(e),
            "seconds": time.perf_counter() - begun,
        }
    report = made.report
    speedup = report.get("latency", {}).get("speedup", {})
    return {
        "model": path.name,
        "seconds": time.perf_counter() - begun,
        "removed": report["removed"]["share"],
        "reached": report["removed"]["reached"],
        "params": report["after"]["params"] / max(report["before"]["params"], 1),
        "error": report["verification"]["max_relative_error"],
        "speedup": speedup.get("estimate"),
        "ci95": speedup.get("ci95"),
        "warnings": report["warnings"],
    }


def main() -> None:
    """Print one line per model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ratio", type=float, default=0.5)
    parser.add_argument("--measure", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("names", nargs="*")
    given = parser.parse_args()
    files = sorted((shared() / "materials").rglob("*.onnx"))
    if not files:
        sys.exit(f"no materials under {shared()}: set SPARSECC_SHARED")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for path in files:
            if given.names and not any(n in path.name for n in given.names):
                continue
            rows.append(row(path, given.ratio, given.measure, Path(folder)))
            print(line(rows[-1]), flush=True)
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1))


def line(found: dict[str, Any]) -> str:
    """One row of the table."""
    start = f"{found['model']:45.45s} {found['seconds']:5.1f}s "
    if "exit" in found:
        return f"{start} exit {found['exit']}: {found['error'][:150]}"
    speed = (
        f"x{found['speedup']:.2f} {found['ci95'][0]:.2f}-{found['ci95'][1]:.2f}" if found["speedup"] else ""
    )
    notes = "; ".join(found["warnings"])[:90]
    return f"{start} -{found['removed']:6.1%} params {found['params']:6.1%} err {found['error']:.1e} {speed} {notes}"


if __name__ == "__main__":
    main()
