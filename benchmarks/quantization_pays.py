"""Whether int8 pays on models of many kinds: `--quantize int8`, `int8!`, and ONNX Runtime's `quantize_static` as it
comes and behind its pre-processing, each timed against float, with what the worst output keeps.

    python benchmarks/quantization_pays.py [--json FILE] [--seconds 900] MODEL.onnx ...
    python benchmarks/quantization_pays.py --document          the table of docs/quantization.md: rows stay
                                                               that the file lacks

Inputs are random, with the spectrum of photographs where they have the shape of images: 8 draws calibrate, 4 others
judge. Times are CPU time on one thread, interleaved in pairs over 5 rounds of fresh sessions, with a 95 % interval;
a file of the same bytes as the float one is as fast as that, and not timed. Models that stand in the file already are
not made again.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx_ir as ir

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.quantization_peers import Reader
from sparsecc.compilation import Compilation
from sparsecc.data.random_inputs import random_feeds
from sparsecc.data.samples import Feeds, image_like
from sparsecc.errors import SparseccError
from sparsecc.ir.graph_editor import prepare
from sparsecc.ir.save import write
from sparsecc.loading.models import load_ir
from sparsecc.loading.normalise import normalise
from sparsecc.loss.quality import told
from sparsecc.measure.fresh_sessions import compare_fresh
from sparsecc.measure.interleave import Budget
from sparsecc.measure.pair import session_start
from sparsecc.options import CompileOptions
from sparsecc.passes.quantize import Quantize
from sparsecc.plan import Plan
from sparsecc.runtime.session import open_session
from sparsecc.system.scratch import Scratch

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "out" / "benchmarks" / "quantization_pays.json"
DOCUMENT = ROOT / "docs" / "quantization.md"
MARKS = "<!-- measured pays -->", "<!-- end of measured pays -->"
CALIBRATED, JUDGED = 8, 4
Facts = dict[str, Any]


def inputs(path: Path) -> list[Feeds]:
    """Draws for a model, at the sizes at which it is found to run."""
    with tempfile.TemporaryDirectory() as folder:
        compilation = Compilation(path, CompileOptions(), Scratch(Path(folder)))
        compilation.begin(normalise(load_ir(path)))
        model, sizes = compilation.dense.model, compilation.sizes[0]
        draws = [random_feeds(model, seed=seed, sizes=sizes) for seed in range(CALIBRATED + JUDGED)]
    return [{name: image_like(array) for name, array in draw.items()} for draw in draws]


def ours(pays: bool, dense: Path, feeds: list[Feeds], folder: Path) -> tuple[Path, Facts]:
    """Our pass, which leaves in float what does not pay, or not."""
    model, path = ir.load(dense), folder / "model.onnx"
    compilation = Compilation(dense, CompileOptions(), Scratch(folder), pass_feeds=feeds)
    result = Quantize(type="int8", only_what_pays=pays).run(model, Plan({}), compilation)
    write(model, path)
    return path, {"layers": len(result.facts["nodes"])}


def static(prepared: bool, dense: Path, feeds: list[Feeds], folder: Path) -> tuple[Path, Facts]:
    """ONNX Runtime's tool with its defaults."""
    from onnxruntime.quantization import quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    source, path = dense, folder / "model.onnx"
    if prepared:
        source = folder / "prepared.onnx"
        quant_pre_process(str(dense), str(source))
    quantize_static(str(source), str(path), Reader(feeds))
    return path, {}


MAKERS: dict[str, Callable[[Path, list[Feeds], Path], tuple[Path, Facts]]] = {
    "int8": lambda *given: ours(True, *given),
    "int8!": lambda *given: ours(False, *given),
    "static": lambda *given: static(False, *given),
    "static prepared": lambda *given: static(True, *given),
}


def point(name: str, dense: Path, draws: list[Feeds]) -> Facts:
    """One variant: speed against float with its interval, share of the bytes, dB of the mean and of the worst part."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            path, facts = MAKERS[name](dense, draws[:CALIBRATED], Path(folder))
            runner, exact = open_session(path), open_session(dense)
            judged = draws[CALIBRATED:]
            close = told([exact.run(feeds) for feeds in judged], [runner.run(feeds) for feeds in judged])
        except (SparseccError, ValueError, RuntimeError, KeyError, TypeError, AttributeError) as e:
            return {"error": f"{type(e).__name__}: {e}".splitlines()[0][:100]}
        if path.read_bytes() == dense.read_bytes():
            return {**facts, "same": True, "size": 1.0}
        starts = session_start(dense, draws[0], 1), session_start(path, draws[0], 1)
        ratio = compare_fresh(*starts, rounds=5, budget=Budget(75, 4.0, 0.3)).ratio()
        share = path.stat().st_size / dense.stat().st_size
    return {**facts, "speedup": ratio.to_json(), "size": share, "worst_db": close["worst"]["quality_db"]}


def cell(facts: Facts) -> str:
    """`1.47 (1.40 to 1.54), 21 dB, 0.30`."""
    if "error" in facts:
        return "fails"
    if facts.get("same"):
        return "the float file"
    low, high = facts["speedup"]["ci95"]
    speed = f"{facts['speedup']['estimate']:.2f} ({low:.2f} to {high:.2f})"
    return f"{speed}, {min(facts['worst_db'], 99):.0f} dB, {facts['size']:.2f}"


def table(points: dict[str, dict[str, Facts]], known: dict[str, str]) -> str:
    """The table of the document, in which the rows stand that are known by model."""
    head = "| model | layers on integers | int8 | int8! | quantize_static | quantize_static, prepared |"
    for model, row in points.items():
        layers = f"{row['int8'].get('layers', 0)} of {row['int8!'].get('layers', 0)}"
        known[model] = f"| {model} | {layers} | {' | '.join(cell(row[name]) for name in MAKERS)} |"
    return "\n".join([head, "|" + "---|" * 6, *(known[model] for model in sorted(known))]) + "\n"


def arguments(about: str | None, results: Path) -> argparse.Namespace:
    """The command line of a benchmark that goes through models and keeps a row of each: `json`, `seconds`, `document`,
    `models`."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=results)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--document", action="store_true")
    parser.add_argument("models", type=Path, nargs="*")
    return parser.parse_args()


def main() -> None:
    """Make what is missing, or write the table."""
    given = arguments(__doc__, OUT)
    logging.disable(logging.WARNING)
    points: dict[str, dict[str, Facts]] = json.loads(given.json.read_text()) if given.json.is_file() else {}
    if given.document:
        text = DOCUMENT.read_text()
        lines = text[text.index(MARKS[0]) : text.index(MARKS[1])].splitlines()[3:]
        known = {line.split("|")[1].strip(): line for line in lines}
        inside = f"{MARKS[0]}\n{table(points, known)}{MARKS[1]}"
        DOCUMENT.write_text(re.sub(f"(?s){MARKS[0]}.*?{MARKS[1]}", lambda _: inside, text))
        return
    end = time.monotonic() + given.seconds
    for path in given.models:
        if path.stem in points or time.monotonic() > end:
            continue
        with tempfile.TemporaryDirectory() as folder:
            dense = Path(folder) / "dense.onnx"
            model = normalise(load_ir(path))
            prepare(model)
            ir.save(model, dense)
            draws = inputs(path)
            points[path.stem] = {name: point(name, dense, draws) for name in MAKERS}
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps(points, indent=1) + "\n")
        print(path.stem, *(f"{name}: {cell(row)};" for name, row in points[path.stem].items()), flush=True)


if __name__ == "__main__":
    main()
