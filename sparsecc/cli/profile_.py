"""`sparsecc profile`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click

from sparsecc.cli import options
from sparsecc.cli.command import Command
from sparsecc.cli.terminal import Terminal, write_file
from sparsecc.cli.view import Block, Grid, Line
from sparsecc.report.numbers import milliseconds, percent, plural, shapes
from sparsecc.report.summary import profile_rows

TOP = 25
"""How many layers are shown; all are in the JSON."""


def run(terminal: Terminal, given: dict[str, Any]) -> int:
    """Measure and show."""
    from sparsecc import api

    page, devices = given.pop("html", None), given.pop("device", [])
    if len(devices) > 1 or "cluster" in given:
        return _fleet(terminal, given, devices, page)
    if devices:
        given["device"] = devices[0]
    if page is not None:
        given["layers"] = True
    with terminal.progress() as on_event:
        measured = api.profile(given.pop("model"), **given, on_event=on_event)
    if page is not None:
        from sparsecc.report.html import profile_page

        write_file(page, profile_page(measured))
        terminal.note(f"wrote {page}")
    terminal.result(measured, profile_view)
    return 0


def _fleet(terminal: Terminal, given: dict[str, Any], devices: Sequence[str], page: str | None) -> int:
    """One model on several devices, or machines of a cluster; the exit code is of the first that failed."""
    if page is not None or "layers" in given:
        raise click.UsageError("--html and --layers show one device: give --device once")
    from sparsecc.fleet import profile_fleet

    with terminal.progress() as on_event:
        found = profile_fleet(given.pop("model"), devices, **given, on_event=on_event)
    terminal.result(found, fleet_view)
    return next((int(one["exit_code"]) for one in found["results"] if "error" in one), 0)


def fleet_view(found: Mapping[str, Any]) -> list[Block]:
    """A row per device: the median and the 90th percentile, or why there are none."""
    rows = []
    for one in found["results"]:
        name = _name(one["device"], "local")
        if "error" in one:
            rows.append((name, "", "", one["error"]))
            continue
        times = one["cpu_ms"]
        rows.append((name, milliseconds(times["p50"]), milliseconds(times["p90"]), f"{times['n']} runs"))
    return [Grid(("device", ">p50", ">p90", ""), rows)]


def profile_view(measured: Mapping[str, Any]) -> list[Block]:
    """Latency, load time, memory; then the slowest layers."""
    rows = profile_rows(measured)
    number = (measured.get("cpu_ms") or measured.get("gpu_ms") or {}).get("n")
    runs = f" over {plural(number, 'run')}" if number else ""
    where = f"{_name(measured.get('target'), 'onnxruntime')} on {_name(measured.get('device'), 'local')}"
    return [
        Line(f"{measured.get('model', 'model')}: {where}{runs}", "title"),
        *([Line(f"A run takes {shapes(measured['inputs'])}.", "dim")] if measured.get("inputs") else []),
        Line(""),
        Grid(("", ">measured"), rows),
        *_layers(measured),
    ]


def _name(value: Any, otherwise: str) -> str:
    return str(value.get("name", otherwise)) if isinstance(value, Mapping) else str(value or otherwise)


def _layers(measured: Mapping[str, Any]) -> list[Block]:
    layers = sorted(measured.get("layers") or (), key=lambda layer: -layer["microseconds"])
    total = sum(layer["microseconds"] for layer in layers)
    if not total:
        return []
    rows = [
        (
            layer["name"] or "(no name)",
            layer["op_type"],
            milliseconds(layer["microseconds"] / 1e3),
            percent(layer["microseconds"] / total),
            layer.get("type", ""),
        )
        for layer in layers[:TOP]
    ]
    more = f", the {TOP} slowest of {len(layers)}" if len(layers) > TOP else ""
    columns = ("layer", "operator", ">time", ">share", "type")
    return [Line(""), Grid(columns, rows, title=f"Layers{more}")]


command = Command(
    "profile",
    run,
    about="Measure the latency of MODEL (an ONNX file or a bundle), and with --layers that of each layer.",
    examples=(
        "sparsecc profile model.onnx --layers",
        "sparsecc profile out/ --device ssh://pi@board --threads 4 --json",
        "sparsecc profile out/ --target tensorrt --device ssh://nano@jetson.local --layers",
        "sparsecc profile out/ --device local,board,ssh://pi@192.0.2.7",
        "sparsecc profile out/ --cluster tcp://boards:8786",
        "sparsecc profile model.onnx --input x:1x3x224x224 --html profile.html",
    ),
    arguments=(options.model(),),
    sections={
        "Target and measurement": (
            options.option("target"),
            options.devices(),
            options.option("key"),
            click.Option(
                ["--cluster"],
                metavar="ADDRESS",
                help="A Dask scheduler, e.g. tcp://host:8786: measure on each of its machines, which see the same "
                "paths; with --device, they reach out to the devices.",
            ),
            options.option("layers"),
            options.option("threads"),
            options.option("custom_ops"),
        ),
        "Data": (options.option("inputs"), options.option("data")),
        "Output": (options.html("the profile"),),
    },
)
