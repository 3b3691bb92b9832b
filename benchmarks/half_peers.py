"""fp16 beside NVIDIA's AutoCast and onnxconverter-common, node by node: who keeps what in float32, and what is lost.

    python benchmarks/half_peers.py [--json FILE] [--seconds 900] MODEL.onnx ...
    python benchmarks/half_peers.py --document                the table of docs/quantization.md

Every tool has the same float model, whose inputs and outputs stay float32; ours (for TensorRT) and AutoCast see draws
of random inputs, others judge. Losses are those of the worst output in decibels, with every fp16 tensor rounded, as
GPUs do. Peers that are not installed are left out: pip install onnxconverter-common, and nvidia-modelopt with
nvidia-ml-py, lief and polygraphy, which need no CUDA for this. Models that stand in the file are not made again.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.quantization_pays import CALIBRATED, arguments, inputs
from sparsecc.compilation import Compilation
from sparsecc.data.samples import Feeds
from sparsecc.errors import SparseccError
from sparsecc.ir.graph_editor import prepare
from sparsecc.loading.models import load_ir
from sparsecc.loading.normalise import normalise
from sparsecc.loss.quality import told
from sparsecc.options import CompileOptions
from sparsecc.passes.quantize import Quantize
from sparsecc.plan import Plan
from sparsecc.rules.value_types import value_types
from sparsecc.runtime.session import open_session
from sparsecc.system.scratch import Scratch

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "out" / "benchmarks" / "half_peers.json"
DOCUMENT = ROOT / "docs" / "quantization.md"
MARKS = "<!-- measured half -->", "<!-- end of measured half -->"
Facts = dict[str, Any]


def ours(dense: Path, feeds: list[Feeds], folder: Path) -> ir.Model:
    """Our pass, for TensorRT."""
    model = ir.load(dense)
    options = CompileOptions(target="tensorrt", measure=False)
    compilation = Compilation(dense, options, Scratch(folder), pass_feeds=feeds)
    Quantize(type="fp16").run(model, Plan({}), compilation)
    return model


def autocast(dense: Path, feeds: list[Feeds], folder: Path) -> ir.Model:
    """NVIDIA's tool with its defaults, and data."""
    from modelopt.onnx.autocast import convert_to_mixed_precision

    np.savez(folder / "data.npz", **feeds[0])  # type: ignore[arg-type]
    data = str(folder / "data.npz")
    made = convert_to_mixed_precision(str(dense), "fp16", keep_io_types=True, calibration_data=data)
    return ir.from_proto(made)


def converter(dense: Path, feeds: list[Feeds], folder: Path) -> ir.Model:
    """Microsoft's tool with its defaults."""
    from onnxconverter_common import float16

    return ir.from_proto(float16.convert_float_to_float16(onnx.load(dense), keep_io_types=True))


MAKERS: dict[str, Callable[[Path, list[Feeds], Path], ir.Model]] = {
    "sparsecc": ours, "autocast": autocast, "converter": converter,
}  # fmt: skip


def in_half(model: ir.Model) -> dict[str, str]:
    """Node -> operator, of those that give fp16 numbers, but for casts."""
    types = value_types(model)
    nodes = [node for node in model.graph if node.op_type != "Cast"]
    half = ir.DataType.FLOAT16
    return {n.name or "": n.op_type for n in nodes if any(types.get(value) == half for value in n.outputs)}


def point(name: str, dense: Path, draws: list[Feeds], exact: list[Any]) -> Facts:
    """The nodes in fp16, and what the worst output keeps; or why there is no result."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            model = MAKERS[name](dense, draws[:CALIBRATED], Path(folder))
            for value in (value for node in model.graph for value in node.outputs):
                value.shape = None  # AutoCast writes those of the inputs that it saw; TensorRT reads none
            runner = open_session(model, level="basic", rounds=True)
            found = [runner.run(feeds) for feeds in draws[CALIBRATED:]]
            close = told(exact, found)
        except ImportError:
            raise
        except Exception as e:  # noqa: BLE001 - a peer may fail in any way; its message is the result
            return {"error": f"{type(e).__name__}: {e}".splitlines()[0][:100]}
        casts = sum(node.op_type == "Cast" for node in model.graph)
        return {"half": in_half(model), "casts": casts, "worst_db": close["worst"]["quality_db"]}


def difference(row: dict[str, Facts], other: str) -> str:
    """The operators that we keep in float32 and the other does not, and the other way round."""
    mine, theirs = (set(row[name].get("half", {})) for name in ("sparsecc", other))
    kinds = {**row[other].get("half", {}), **row["sparsecc"].get("half", {})}
    shared = set(row["float nodes"])
    more, less = (Counter(kinds[n] for n in names & shared) for names in (mine - theirs, theirs - mine))
    words = [
        f"{sign}{count} {kind}"
        for sign, found in (("+", more), ("-", less))
        for kind, count in found.most_common(3)
    ]
    return ", ".join(words) or "none"


def table(points: dict[str, dict[str, Any]]) -> str:
    """The table of the document."""
    head = "| model | nodes | sparsecc | AutoCast | differs from ours | onnxconverter-common | differs from ours |"
    rows = [head, "|" + "---|" * 7]
    for model, row in sorted(points.items()):
        cells = [_cell(row["sparsecc"])]
        for other in ("autocast", "converter"):
            known = other in row
            cells += [
                _cell(row[other]) if known else "",
                difference(row, other) if known and "half" in row[other] else "",
            ]
        rows.append(f"| {model} | {len(row['float nodes'])} | {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def _cell(facts: Facts) -> str:
    if "error" in facts:
        return "fails"
    return f"{len(facts['half'])}, {facts['casts']} casts, {min(facts['worst_db'], 99):.0f} dB"


def main() -> None:
    """Make what is missing, or write the table."""
    given = arguments(__doc__, OUT)
    logging.disable(logging.WARNING)
    points: dict[str, dict[str, Any]] = json.loads(given.json.read_text()) if given.json.is_file() else {}
    if given.document:
        inside = f"{MARKS[0]}\n{table(points)}{MARKS[1]}"
        text = DOCUMENT.read_text()
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
            try:
                draws = inputs(path)
            except SparseccError as e:
                print(f"{path.stem}: left out ({str(e)[:80]})", flush=True)
                continue
            runner = open_session(dense, level="basic")
            exact = [runner.run(feeds) for feeds in draws[CALIBRATED:]]
            row: dict[str, Any] = {"float nodes": _float_nodes(model)}
            for name in MAKERS:
                try:
                    row[name] = point(name, dense, draws, exact)
                except ImportError as e:
                    print(f"{name}: left out ({e})", flush=True)
        points[path.stem] = row
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps(points, indent=1) + "\n")
        told_ = (f"{name}: {_cell(row[name])};" for name in MAKERS if name in row)
        print(path.stem, len(row["float nodes"]), *told_, flush=True)


def _float_nodes(model: ir.Model) -> list[str]:
    """The names of nodes that give float32 numbers."""
    types = value_types(model)
    return [n.name or "" for n in model.graph if any(types.get(v) == ir.DataType.FLOAT for v in n.outputs)]


if __name__ == "__main__":
    main()
