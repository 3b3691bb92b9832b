"""`sparsecc build`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sparsecc.cli import options
from sparsecc.cli.command import Command
from sparsecc.cli.run_log import trail
from sparsecc.cli.terminal import Terminal
from sparsecc.cli.view import Block, Grid, Line
from sparsecc.report import numbers


def run(terminal: Terminal, given: dict[str, Any]) -> None:
    """Build, and say what was built."""
    from sparsecc import api

    trail().will_write(given["bundle"])
    with terminal.progress() as on_event:
        built = api.build(given.pop("bundle"), **given, on_event=on_event)
    terminal.result(built, build_view)


def build_view(built: Mapping[str, Any]) -> list[Block]:
    """The engine, its size, and with what it was built."""
    facts = built["facts"]
    rows = [("engine", built["artefact"]), ("size", numbers.size(built["bytes"]))]
    rows += [(key, str(facts[key])) for key in ("version", "device", "command") if facts.get(key)]
    seconds = facts.get("build_seconds")
    if seconds is not None:
        rows.append(("build time", f"{seconds:.1f} s"))
    bundle = built["bundle"]
    return [
        Line(f"Built for {built['target']}.", "good"),
        Line(""),
        Grid(("", ""), rows),
        Line(""),
        *(Line(line, "warn") for line in facts.get("left_out", ())),
        Line(f"Bundle: {bundle}", "title"),
        Line(f"Next: sparsecc verify {bundle} --model ORIGINAL", "dim"),
    ]


command = Command(
    "build",
    run,
    about="Build the engine of BUNDLE, which compile wrote with --emit onnx, here or on a device.",
    examples=(
        "sparsecc compile model.onnx --target tensorrt --ratio 0.5 --emit onnx -o out/",
        "sparsecc build out/",
        "sparsecc build out/ --device ssh://user@board",
    ),
    arguments=(options.model("bundle"),),
    sections={
        "Where": (
            options.option("device", help="Where to build; NAME is one of `sparsecc devices list`."),
            options.option("deadline", help="Stop the build after this, e.g. 30min."),
        ),
        "How": (options.option("build"),),
    },
)
