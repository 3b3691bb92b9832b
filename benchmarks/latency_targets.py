"""Whether compiles reach their speed-up, and how well the latency table foretells it, on real models.

    python benchmarks/latency_targets.py --speedups 1.5 2 3 --metrics macs latency channels [NAME ...]
    python benchmarks/latency_targets.py --data resnet20 digits_vit ...    models with samples and labels
    python benchmarks/latency_targets.py --markdown -o FILE      the tables of docs/latency.md

For every model, metric and speed-up: the ratio found, the final interleaved measurement with its interval,
how many trials it took, and the fidelity of the result; and for the table its prediction beside what was
measured. With `--data`, models of accuracy_pairs.py are compiled with their samples, and their accuracy is told.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import sparsecc
from benchmarks.accuracy_pairs import PAIRS, Pair
from sparsecc.errors import SparseccError
from sparsecc.runtime.session import open_session

MODELS = (
    "cifar10/resnet20_cifar10.onnx",
    "cifar10/resnet56_cifar10.onnx",
    "face/ultraface-slim-320.onnx",
    "face/mp_iris_landmark.onnx",
    "imagenet1000/squeezenet1.1_ts13.onnx",
    "misc/hyperlpr_cls_96x.onnx",
    "mnist/ort_mnist_original.onnx",
    "pose/mp_palm_detection_lite.onnx",
    "seg/prisma_nchw.onnx",
    "sr/super_resolution_224_caffe2.onnx",
)
"""Ten small models of different kinds, under the shared materials."""
METRICS = ("macs", "latency", "channels")
NEAR = 0.05
"""How far from the asked speed-up a final measurement may lie."""


def shared() -> Path:
    """The folder of shared materials."""
    return Path(os.environ.get("SPARSECC_SHARED") or Path(__file__).resolve().parents[1].parent / "shared")


def target_row(path: Path, wanted: float, metric: str, folder: Path, **options: Any) -> dict[str, Any]:
    """Compile one model to one speed-up."""
    row: dict[str, Any] = {"model": path.name, "wanted": wanted, "metric": metric}
    begun = time.perf_counter()
    output = folder / "out"
    try:
        made = sparsecc.compile(path, speedup=wanted, metric=metric, output=output, force=True, **options)
    except SparseccError as e:
        return {**row, "refused": str(e), "seconds": time.perf_counter() - begun}
    report = made.report
    speedup = report["latency"]["speedup"]
    row |= {"found": speedup["estimate"], "ci95": speedup["ci95"], "met": report["goal"]["met"]}
    row |= {"ratio": report["asked"]["ratio"], "trials": len(report["trials"])}
    return {**row, "fidelity": report["fidelity"], "seconds": time.perf_counter() - begun}


def scored_row(pair: Pair, wanted: float, metric: str, folder: Path) -> dict[str, Any]:
    """The same with samples, and the accuracy of what was compiled."""
    samples = folder / "samples.npz"
    names = pair.samples.batches[0]
    np.savez(samples, **{n: np.concatenate([batch[n] for batch in pair.samples.batches]) for n in names})  # type: ignore[arg-type]
    row = target_row(pair.model, wanted, metric, folder, calib=str(samples))
    if "found" in row:
        row["dense"] = pair.accuracy(open_session(pair.model, threads=1).run)
        row["accuracy"] = pair.accuracy(open_session(folder / "out" / "model.onnx", threads=1).run)
    return row


def table_row(path: Path, ratio: float, folder: Path) -> dict[str, Any]:
    """The table's prediction of a speed-up beside the measured one; the seconds it took to learn."""
    from sparsecc.compilation import Compilation
    from sparsecc.cost.latency import latency_model
    from sparsecc.cost.latency_table import LatencyTable
    from sparsecc.decide.channels import choose
    from sparsecc.graph.groups import find_groups
    from sparsecc.graph.rewrite import remove
    from sparsecc.ir.save import write
    from sparsecc.loading.models import load_ir
    from sparsecc.loading.normalise import normalise
    from sparsecc.measure.pair import measure_pair
    from sparsecc.options import CompileOptions
    from sparsecc.system.scratch import Scratch

    options, model = CompileOptions(), normalise(load_ir(path))
    compilation = Compilation(path, options, Scratch(folder))
    analysis = compilation.begin(model)
    begun, table = time.perf_counter(), LatencyTable()
    cost = latency_model(analysis, table)
    learnt = time.perf_counter() - begun
    keep = choose(compilation, analysis, find_groups(analysis), ratio).keep
    told = cost.total({}) / cost.total({atom: int(slots.sum()) for atom, slots in keep.items()})
    remove(analysis, keep)
    found = measure_pair(
        compilation.dense.path, write(analysis.model, folder / "small.onnx"), compilation.feeds[0]
    )
    real = found.ratio().speedup
    return {
        "model": path.name,
        "ratio": ratio,
        "told": told,
        "measured": real,
        "error": told / real - 1,
        "seconds": learnt,
        "classes_timed": table.measured,
    }


@dataclass
class Results:
    """Rows of both tables, written after each; a later run goes on where one was stopped."""

    file: Path
    targets: list[dict[str, Any]]
    table: list[dict[str, Any]]

    @staticmethod
    def at(file: Path) -> Results:
        known = json.loads(file.read_text()) if file.is_file() else {"targets": [], "table": []}
        return Results(file, known["targets"], known["table"])

    def has(self, rows: list[dict[str, Any]], **key: Any) -> bool:
        return any(all(row.get(name) == value for name, value in key.items()) for row in rows)

    def add(self, rows: list[dict[str, Any]], row: dict[str, Any]) -> None:
        rows.append(row)
        self.file.write_text(json.dumps({"targets": self.targets, "table": self.table}, indent=1) + "\n")


def run(given: argparse.Namespace, paths: list[Path], results: Results) -> None:
    """All models, one after the other."""
    for path in paths:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            for ratio in given.ratios:
                if results.has(results.table, model=path.name, ratio=ratio):
                    continue
                try:
                    results.add(results.table, table_row(path, ratio, folder))
                except SparseccError as e:
                    print(f"{path.name}: {e}", file=sys.stderr)
                    continue
                row = results.table[-1]
                told = f"table {row['told']:.2f}x, measured {row['measured']:.2f}x ({row['error']:+.1%})"
                print(f"{row['model']} at {ratio}: {told}", flush=True)
            for metric in given.metrics:
                for wanted in given.speedups:
                    if not results.has(results.targets, model=path.name, metric=metric, wanted=wanted):
                        results.add(results.targets, target_row(path, wanted, metric, folder))
                        print(line(results.targets[-1]), flush=True)


def run_scored(given: argparse.Namespace, results: Results) -> None:
    """All pairs with data, one after the other."""
    for name in given.data:
        pair = PAIRS[name]()
        for metric in given.metrics:
            for wanted in given.speedups:
                key = {"model": pair.model.name, "metric": metric, "wanted": wanted}
                if results.has(results.targets, **key):
                    continue
                with tempfile.TemporaryDirectory() as folder:
                    results.add(results.targets, scored_row(pair, wanted, metric, Path(folder)))
                row = results.targets[-1]
                print(f"{line(row)}, accuracy {row.get('accuracy')} of {row.get('dense')}", flush=True)


def line(row: dict[str, Any]) -> str:
    """One row in words."""
    start = f"{row['model']} {row['wanted']}x by {row['metric']}"
    if "refused" in row:
        return f"{start}: refused: {row['refused'][:160]}"
    verdict = "met" if row["met"] else "MISSED"
    return f"{start}: {verdict} {row['found']:.2f}x at ratio {row['ratio']:.3f} in {row['trials']} trials"


def markdown(results: Results) -> str:
    """A row per model: speed-up reached and fidelity by each metric; then the table's predictions."""
    columns = sorted({(row["wanted"], row["metric"]) for row in results.targets}, key=_column)
    heads = [f"{wanted:g}x by {metric}" for wanted, metric in columns]
    lines = [f"| model | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    rows = {(row["model"], row["wanted"], row["metric"]): row for row in results.targets}
    for model in dict.fromkeys(row["model"] for row in results.targets):
        cells = [_cell(rows.get((model, *column))) for column in columns]
        lines.append(f"| {model.removesuffix('.onnx')} | {' | '.join(cells)} |")
    lines += ["", "| model | ratio | table | measured | error |", "|---|---|---|---|---|"]
    lines += [
        f"| {row['model'].removesuffix('.onnx')} | {row['ratio']} | {row['told']:.2f}x | {row['measured']:.2f}x "
        f"| {row['error']:+.1%} |"
        for row in results.table
    ]
    return "\n".join([*lines, "", *summary(results)])


def _column(key: tuple[float, str]) -> tuple[float, int]:
    return key[0], METRICS.index(key[1])


def _cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return "-"
    if "refused" in row:
        return "refused"
    kept = f"{row['accuracy']:.3f}" if "accuracy" in row else f"{row['fidelity']['quality_db']:.1f} dB"
    near = "" if abs(row["found"] / row["wanted"] - 1) <= NEAR else "**"
    return f"{near}{row['found']:.2f}x{near} {kept}"


def summary(results: Results) -> list[str]:
    """How often a target was met, how far the table was off, and which metric kept more at the same speed."""
    found = []
    if results.table:
        errors = [abs(row["error"]) for row in results.table]
        found.append(f"table: median error {median(errors):.1%} over {len(errors)} plans")
    reached = [row for row in results.targets if "found" in row]
    near = sum(abs(row["found"] / row["wanted"] - 1) <= NEAR for row in reached)
    refused = len(results.targets) - len(reached)
    found.append(
        f"targets: {near} within 5 %, {len(reached) - near} not, {refused} refused, of {len(results.targets)}"
    )
    kept = {(row["model"], row["wanted"], row["metric"]): row["fidelity"]["quality_db"] for row in reached}
    for metric in METRICS[1:]:
        pairs = [
            (kept[m, w, metric], kept[m, w, "macs"])
            for m, w, k in kept
            if k == metric and (m, w, "macs") in kept
        ]
        if pairs:
            better = sum(own > macs for own, macs in pairs)
            gain = median(own - macs for own, macs in pairs)
            found.append(
                f"{metric} against macs: more decibels left in {better} of {len(pairs)}, median {gain:+.1f} dB"
            )
    return found


def main() -> None:
    """Print one line per compile, and a summary."""
    parser = argparse.ArgumentParser(description="Compiles to speed-ups, and the error of the latency table.")
    parser.add_argument("--speedups", type=float, nargs="*", default=[1.5, 2.0, 3.0])
    parser.add_argument("--metrics", nargs="*", default=list(METRICS))
    parser.add_argument("--ratios", type=float, nargs="*", default=[0.3, 0.6])
    parser.add_argument("-o", "--output", type=Path, default=Path("latency_targets.json"))
    parser.add_argument("--data", nargs="*", default=[], metavar="PAIR")
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("names", nargs="*", help="parts of model names; all without any")
    given = parser.parse_args()
    if given.markdown:
        print(markdown(Results.at(given.output)))
        return
    paths = [shared() / "materials" / name for name in MODELS]
    paths = [p for p in paths if p.is_file() and (not given.names or any(n in p.name for n in given.names))]
    if not paths:
        sys.exit(f"no models under {shared()}: set SPARSECC_SHARED")
    if given.data:
        run_scored(given, Results.at(given.output))
    else:
        run(given, paths, Results.at(given.output))
    print("\n".join(summary(Results.at(given.output))))


if __name__ == "__main__":
    main()
