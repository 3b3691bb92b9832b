"""Builds and checks the zoo, and prints the table: `python -m tests.zoo.export all|fast|NAME...`."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as onnxruntime_errors
from torch import Tensor

from tests.zoo import FAST, ZOO, known
from tests.zoo.export import EXPORTERS, FORMS, Exporter, Form, ZooUnavailable, onnx_path, quietly
from tests.zoo.registry import Model

TOLERANCE = 1e-4
RUN_ERRORS = (
    onnxruntime_errors.Fail,
    onnxruntime_errors.InvalidArgument,
    onnxruntime_errors.RuntimeException,
)


@dataclass(frozen=True)
class Row:
    """One export: how it went, and how far its outputs are from the torch module's at each set of inputs."""

    name: str
    exporter: str
    status: str
    nodes: int = 0
    parameters: int = 0
    seconds: float = 0.0
    batch: str = ""
    size: str = ""


def check(name: str, exporter: Exporter, form: Form = "plain", model: Model | None = None) -> Row:
    """Exports an entry and compares it in ONNX Runtime with torch, at the example and the alternative inputs.

    `status` is "ok", or why not; `batch` and `size` are "ok", "static" with what bakes that
    dimension, or the error; "-" where the architecture has no other size.
    """
    started = time.process_time()
    try:
        path = onnx_path(name, exporter, form)
    except ZooUnavailable as e:
        return Row(name, exporter, f"unavailable: {e}")
    seconds = time.process_time() - started
    model = model or ZOO[name].build()
    found = {kind: _alternative(name, exporter, path, model, kind) for kind in ("batch", "size")}
    return Row(
        name,
        exporter,
        _outcome(path, model, model.example()),
        len(onnx.load(path).graph.node),
        sum(p.numel() for p in model.module.parameters()),
        round(seconds, 2),
        **found,
    )


def _alternative(name: str, exporter: Exporter, path: Path, model: Model, kind: str) -> str:
    inputs = model.alternatives().get(kind)
    if inputs is None:
        return "-"
    static = known.STATIC.get((name, exporter), known.Static())
    if static.dimensions and ("batch" in static.dimensions) == (kind == "batch"):
        return f"static: {static.reason}"
    return _outcome(path, model, inputs)


def _outcome(path: Path, model: Model, inputs: tuple[Tensor, ...]) -> str:
    try:
        error = difference(path, model, inputs)
    except RUN_ERRORS as e:
        return f"refused: {str(e).splitlines()[0][:80]}"
    return "ok" if error <= TOLERANCE else f"differs by {error:.1e}"


def difference(path: Path, model: Model, inputs: tuple[Tensor, ...]) -> float:
    """Largest |onnx - torch| over all outputs, relative to the largest |torch| where that exceeds 1."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    expected = [value.numpy() for value in model.run(inputs)]
    taken = {i.name for i in session.get_inputs()}
    feeds = {n: v.numpy() for n, v in zip(model.input_names, inputs, strict=True) if n in taken}
    got = session.run(None, feeds)
    assert len(got) == len(expected), f"{path.name} has {len(got)} outputs, the module {len(expected)}"
    return max(_distance(g, e) for g, e in zip(got, expected, strict=True))


def _distance(got: np.ndarray, expected: np.ndarray) -> float:
    if got.shape != expected.shape:
        return float("inf")
    scale = max(1.0, float(np.abs(expected).max()))
    distance = float(np.abs(got - expected).max()) / scale
    return distance if np.isfinite(distance) else float("inf")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Build the zoo's ONNX files and check them against torch.")
    parser.add_argument("names", nargs="+", help="'all', 'fast', or names of entries")
    parser.add_argument("--exporter", choices=EXPORTERS, action="append")
    parser.add_argument("--form", choices=FORMS, default="plain")
    parser.add_argument("--json", type=Path, help="also write the rows there")
    options = parser.parse_args(arguments)
    names = {"all": tuple(ZOO), "fast": FAST}.get(options.names[0], tuple(options.names))
    rows = [row for name in names for row in _rows(name, options.exporter or EXPORTERS, options.form)]
    print(table(rows))
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))


def _rows(name: str, exporters: Sequence[Exporter], form: Form) -> list[Row]:
    rows = []
    with quietly():
        model = ZOO[name].build()
    for exporter in exporters:
        row = check(name, exporter, form, model)
        print(
            f"{name} {exporter}: {row.status}, batch {row.batch}, size {row.size}, {row.seconds:.1f} s",
            file=sys.stderr,
            flush=True,
        )
        rows.append(row)
    return rows


def table(rows: Sequence[Row]) -> str:
    """The rows as a markdown table, and a line of totals."""
    lines = [
        "| name | exporter | export | nodes | params | s | batch | size |",
        "|---|---|---|--:|--:|--:|---|---|",
    ]
    lines += [f"| {' | '.join(str(v) for v in astuple(r))} |" for r in rows]
    good = [r for r in rows if r.status == "ok"]
    mean = sum(r.seconds for r in rows) / max(len(rows), 1)
    lines.append(f"\n{len(good)} of {len(rows)} exports equal torch; {mean:.1f} s each on average.")
    return "\n".join(lines)
