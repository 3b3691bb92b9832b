"""Prune half of every free group of every zoo model at random, compare with the masked dense model.

python benchmarks/zoo.py [--exporter dynamo] [--form onnxslim] [--json FILE] [NAME …]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sparsecc.errors import SparseccError
from tests.pruning import prune_half
from tests.zoo import ZOO
from tests.zoo.export import EXPORTERS, FORMS, Exporter, Form, ZooUnavailable, onnx_path


def row(name: str, exporter: Exporter, form: Form = "plain") -> dict[str, Any] | None:
    """One entry from one exporter, None where that exporter cannot export it."""
    try:
        path = onnx_path(name, exporter, form)
    except ZooUnavailable:
        return None
    with tempfile.TemporaryDirectory() as scratch:
        try:
            found = prune_half(path, Path(scratch))
        except (SparseccError, AssertionError, LookupError, ValueError, TypeError) as e:
            return {"name": name, "exporter": exporter, "exact": False, "failure": f"{type(e).__name__}: {e}"}
    return {"name": name, "exporter": exporter, "exact": found.is_exact, **asdict(found)}


def line(found: dict[str, Any]) -> str:
    """One row of the table."""
    start = f"{found['name']:28s} {found['exporter']:11s} {'exact' if found['exact'] else 'WRONG':5s}"
    if "failure" in found:
        return f"{start} {found['failure'][:200]}"
    planned = "-" if found["planned_error"] is None else f"{found['planned_error']:.0e}"
    pins = ", ".join(f"{n}× {r[:60]}" for r, n in list(found["unfollowed"].items())[:2])
    return (
        f"{start} {found['nodes']:5d} nodes {found['seconds'] * 1e3:5.0f} ms "
        f"{found['free']:3d}/{found['groups']:3d} free "
        f"{found['coverage']:6.1%} covered, error {found['error']:.0e} by plan {planned} {pins}"
    )


def main() -> None:
    """Print one line per model and exporter, then the summary."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--exporter", choices=EXPORTERS)
    parser.add_argument("--form", choices=FORMS, default="plain")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    rows = []
    for name in given.names or ZOO:
        for exporter in [given.exporter] if given.exporter else EXPORTERS:
            found = row(name, exporter, given.form)
            if found is not None:
                rows.append(found)
                print(line(found), flush=True)
    exact = sum(r["exact"] for r in rows)
    coverage = [r["coverage"] for r in rows if "coverage" in r]
    print(f"{exact} of {len(rows)} exact; coverage: median {median(coverage):.1%}, least {min(coverage):.1%}")
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
