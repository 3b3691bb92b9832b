"""`sparsecc compare`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sparsecc.cli import options
from sparsecc.cli.command import Command
from sparsecc.cli.terminal import Terminal
from sparsecc.cli.view import Block, Grid, Line
from sparsecc.report.numbers import shapes
from sparsecc.report.summary import clocked_rows
from sparsecc.report.verdict import RANDOM, kept_text


def run(terminal: Terminal, given: dict[str, Any]) -> None:
    """Run both models side by side and show the differences."""
    from sparsecc import api

    with terminal.progress() as on_event:
        compared = api.compare(given.pop("a"), given.pop("b"), **given, on_event=on_event)
    terminal.result(compared, compare_view)


def compare_view(compared: Mapping[str, Any]) -> list[Block]:
    """The ratio of the latencies, both latencies, and the difference of each output."""
    latency = compared.get("latency") or {}
    rows, remark = clocked_rows(latency, ("p50", "p90", "p99", "mean"))
    return [
        Line(_verdict(latency), "title"),
        Line(""),
        Grid(("", ">A", ">B", ">change"), rows),
        *([Line(remark, "dim")] if remark else []),
        *_outputs(compared),
    ]


def _verdict(latency: Mapping[str, Any]) -> str:
    speedup = latency.get("speedup")
    if not speedup:
        return "latency was not measured"
    low, high = speedup["ci95"]
    ratio = f"{speedup['estimate']:.2f}x"
    interval = f"(95 % interval {low:.2f} to {high:.2f})"
    if low <= 1 <= high:
        return f"no difference in latency can be told: B is {ratio} as fast as A {interval}"
    return f"B is {ratio} as fast as A {interval}"


def _outputs(compared: Mapping[str, Any]) -> list[Block]:
    outputs = compared.get("outputs") or {}
    if not outputs:
        return []
    error = f"largest relative error {outputs['max_relative_error']:.2g}"
    said: list[Block] = [Line(f"B against A: {kept_text(outputs) or 'no numbers to compare'}; {error}.")]
    if outputs.get("data") == RANDOM:
        said.append(Line("Random inputs say little of quality: --data with real samples tells more.", "dim"))
    if "inputs" in compared:
        said.append(Line(f"Latency is of a run of {shapes(compared['inputs'])}.", "dim"))
    return [Line(""), *said]


command = Command(
    "compare",
    run,
    about="Run A and B (ONNX files or bundles) on the same data, interleaved, and compare them.",
    examples=(
        "sparsecc compare model.onnx out/",
        "sparsecc compare model.onnx out/ --data samples.npz --threads 4",
        "sparsecc compare old.onnx new.onnx --json",
    ),
    arguments=(options.model("a"), options.model("b")),
    sections={
        "Data and measurement": (
            options.option("data"),
            options.option("inputs"),
            options.option("threads"),
            options.option("custom_ops"),
        ),
    },
)
