"""The share of the zoo's parameters that can go, at every opset of each exporter and in files converted further up.

    python benchmarks/opsets.py [--json FILE] [--seconds 400] [NAME ...]

A share is that of the parameters which is gone where every free group keeps as few slots as it may. Each is
held against the same entry and exporter at opset 18: further than EQUAL away is told, with operators that are not
followed. Rows that the JSON file holds are not made again.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import onnx

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sparsecc.errors import SparseccError
from sparsecc.graph.analysis import analyse
from sparsecc.loading.models import load_ir
from sparsecc.loading.normalise import normalise
from tests.pruning import removable
from tests.zoo import ZOO
from tests.zoo.export import EXPORTERS, RANGES, Exporter, ZooUnavailable, at_opset

EQUAL = 0.01
BASE = 18
NEWEST = 25
"""What files are converted to: the newest that ONNX Runtime 1.31 takes for finished."""
OUT = Path("out/benchmarks/opsets.json")


def row(name: str, exporter: Exporter, opset: int) -> dict[str, Any]:
    """The share of one file, or why there is none."""
    found: dict[str, Any] = {"name": name, "exporter": exporter, "opset": opset}
    try:
        proto = at_opset(name, exporter, opset)
    except ZooUnavailable as e:
        return {**found, "unavailable": str(e)}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        onnx.save(proto, path)
        try:
            analysis = analyse(normalise(load_ir(path)))
        except SparseccError as e:
            return {**found, "failure": str(e)}
    reasons = Counter(f"{node.op_type}: {reason}" for node, reason in analysis.record.unfollowed.items())
    return {**found, "share": removable(analysis), "unfollowed": dict(reasons.most_common(3))}


def opsets(exporter: Exporter) -> Sequence[int]:
    """Those that the exporter writes, then that of a converted file."""
    return (BASE, *(n for n in RANGES[exporter] if n != BASE), NEWEST)


def rows(names: Sequence[str], known: list[dict[str, Any]], end: float) -> Iterator[dict[str, Any]]:
    """The rows that are not known yet, until the time is up."""
    done = {(r["name"], r["exporter"], r["opset"]) for r in known}
    for name in names:
        for exporter in EXPORTERS:
            for opset in opsets(exporter):
                if (name, exporter, opset) not in done and time.monotonic() < end:
                    yield row(name, exporter, opset)


def told(found: list[dict[str, Any]]) -> str:
    """How many shares are those at opset 18, and each that is not."""
    base = {(r["name"], r["exporter"]): r["share"] for r in found if r["opset"] == BASE and "share" in r}
    judged = [r for r in found if r["opset"] != BASE and (r["name"], r["exporter"]) in base and "share" in r]
    away = [r for r in judged if abs(r["share"] - base[r["name"], r["exporter"]]) > EQUAL]
    lines = [
        f"{r['name']} {r['exporter']} {r['opset']}: {r['share']:.1%}, at {BASE} "
        f"{base[r['name'], r['exporter']]:.1%}: {r['unfollowed']}"
        for r in away
    ]
    lines += [f"{r['name']} {r['exporter']} {r['opset']}: {r['failure']}" for r in found if "failure" in r]
    names = {r["name"] for r in judged}
    lines.append(
        f"{len(judged) - len(away)} of {len(judged)} files of {len(names)} entries within {EQUAL:.0%} of opset "
        f"{BASE}; {sum('unavailable' in r for r in found)} that no exporter or converter makes"
    )
    return "\n".join(lines)


def main() -> None:
    """Make what is missing, store it as it comes, tell all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--json", type=Path, default=OUT)
    parser.add_argument("--seconds", type=float, default=1e9)
    given = parser.parse_args()
    given.json.parent.mkdir(parents=True, exist_ok=True)
    found = json.loads(given.json.read_text()) if given.json.exists() else []
    if unknown := sorted(set(given.names) - set(ZOO)):
        sys.exit(f"no zoo entries: {', '.join(unknown)}")
    for one in rows(given.names or list(ZOO), found, time.monotonic() + given.seconds):
        found.append(one)
        given.json.write_text(json.dumps(found, indent=1))
    print(told(found))


if __name__ == "__main__":
    main()
