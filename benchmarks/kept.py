"""The share of parameters that is kept at half of the channels, per exporter and form of the file.

    python benchmarks/kept.py [--exporter E] [--form F] [--json FILE] [--dry-run] [--again] [NAME ...]

Each full-size model of `tests/zoo/large.py` is compiled as `--ratio 0.5 --metric channels --allocator uniform`
from a plain ONNX file of both torch exporters, as exported, put through onnxslim and onnxsim, and saved by
ONNX Runtime after its basic and its extended optimizations. The share is of float elements in constants.
Rows that the JSON file already holds are not run again without `--again`; every row is stored as it comes.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import onnx

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import sparsecc
from sparsecc.errors import SparseccError
from tests.zoo.export import EXPORTERS, Exporter, Form, in_form, quietly
from tests.zoo.large import large_path

LIMITS = {
    "resnet50": 0.28,
    "mobilenet_v2": 0.36,
    "vit_b16": 0.27,
    "bert_base": 0.32,
    "gpt2_small": 0.36,
    "llama_gqa": 0.38,
}
"""The most that may be kept, by model."""
FORMS: tuple[Form, ...] = ("plain", "onnxslim", "onnxsim", "ort-basic", "ort-extended")
EQUAL = 0.01
"""How far the forms of one model may lie apart, as a share of the least."""
OUT = Path("out/benchmarks/kept.json")


def row(name: str, exporter: Exporter, form: Form, dry_run: bool) -> dict[str, Any]:
    """What one form of one model keeps, and what is pinned in it."""
    found: dict[str, Any] = {"name": name, "exporter": exporter, "form": form}
    path = large_path(name, exporter)
    with tempfile.TemporaryDirectory() as scratch:
        file = path
        if form != "plain":
            file = Path(scratch) / "model.onnx"
            with quietly():
                onnx.save(in_form(path, form), file)
        begun = time.perf_counter()
        try:
            made = sparsecc.compile(
                file, ratio=0.5, metric="channels", allocator="uniform", measure=False, dry_run=dry_run,
                output=Path(scratch) / "out",
            )  # fmt: skip
        except SparseccError as e:
            return {**found, "failure": str(e)}
        seconds = time.perf_counter() - begun
    report = made.report
    return {
        **found,
        "kept": report["after"]["params"] / report["before"]["params"],
        "params": report["before"]["params"],
        "nodes": made.plan["model"]["nodes"],
        "error": report["verification"].get("max_relative_error"),
        "pinned": report["pinned"],
        "seconds": seconds,
    }


def markdown(rows: list[dict[str, Any]]) -> str:
    """One line per model and exporter, one column per form."""
    lines = [
        f"| model | at most | exporter | {' | '.join(FORMS)} |",
        f"|---|--:|---|{'--:|' * len(FORMS)}",
    ]
    by_place = {(r["name"], r["exporter"], r["form"]): r for r in rows}
    for name in LIMITS:
        for exporter in EXPORTERS:
            cells = [_cell(by_place.get((name, exporter, form))) for form in FORMS]
            lines.append(f"| {name} | {LIMITS[name]:.2f} | {exporter} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(found: dict[str, Any] | None) -> str:
    if found is None:
        return "-"
    return f"{found['kept']:.4f}" if "kept" in found else "refused"


def faults(rows: list[dict[str, Any]]) -> Iterator[str]:
    """What is above its limit, refused, or differs from the forms of the same model that store as many parameters."""
    for r in rows:
        if "failure" in r:
            yield f"{r['name']} {r['exporter']} {r['form']}: {r['failure']}"
        elif r["kept"] > LIMITS[r["name"]]:
            yield f"{r['name']} {r['exporter']} {r['form']}: {r['kept']:.4f} is above {LIMITS[r['name']]}"
    for name in LIMITS:
        found = [(r["params"], r["kept"]) for r in rows if r["name"] == name and "kept" in r]
        for params in {params for params, _ in found}:  # a table that is stored twice is no other coverage
            kept = [share for stored, share in found if abs(stored - params) <= EQUAL * params]
            if max(kept) > (1 + EQUAL) * min(kept):
                yield f"{name}: forms of {params:,} parameters differ, {min(kept):.4f} to {max(kept):.4f}"


def main() -> None:
    """Run what is missing, print the table, fail where a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="models, all by default")
    parser.add_argument("--exporter", choices=EXPORTERS)
    parser.add_argument("--form", choices=FORMS)
    parser.add_argument("--json", type=Path, default=OUT)
    parser.add_argument("--dry-run", action="store_true", help="decide only: nothing is built or proved")
    parser.add_argument("--again", action="store_true")
    given = parser.parse_args()
    rows: list[dict[str, Any]] = json.loads(given.json.read_text()) if given.json.exists() else []
    given.json.parent.mkdir(parents=True, exist_ok=True)
    exporters = [given.exporter] if given.exporter else EXPORTERS
    for place in product(given.names or LIMITS, exporters, [given.form] if given.form else FORMS):
        known = [r for r in rows if (r["name"], r["exporter"], r["form"]) == place]
        if known and not given.again:
            continue
        rows = [*(r for r in rows if r not in known), row(*place, given.dry_run)]
        given.json.write_text(json.dumps(rows, indent=1))
        print(*place, _cell(rows[-1]), flush=True)
    print(markdown(rows))
    missed = list(faults(rows))
    print(*missed, sep="\n")
    sys.exit(bool(missed))


if __name__ == "__main__":
    main()
