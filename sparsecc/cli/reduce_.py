"""`sparsecc reduce`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from sparsecc.cli import options
from sparsecc.cli.command import Command
from sparsecc.cli.run_log import trail
from sparsecc.cli.terminal import Terminal
from sparsecc.cli.view import Block, Line
from sparsecc.options.places import default_reduced


def run(terminal: Terminal, given: dict[str, Any]) -> None:
    """Reduce, and say how far it went."""
    from sparsecc import api

    trail().will_write(given.get("output") or default_reduced(given["model"]))
    with terminal.progress() as on_event:
        found = api.reduce(given.pop("model"), **given, on_event=on_event)
    terminal.result(found, reduce_view)


def reduce_view(found: Mapping[str, Any]) -> list[Block]:
    """One line: what is left and where it lies."""
    nodes = found["nodes"]
    fact = f"{nodes['after']} of {nodes['before']} nodes still give exit code {found['exit_code']}"
    return [Line(f"{fact} ({found['trials']} trials): {found['output']}", "good")]


command = Command(
    "reduce",
    run,
    about="Shrink a failing MODEL to the fewest nodes with which a command still fails, for a bug report.",
    examples=(
        "sparsecc reduce model.onnx --check 'sparsecc compile {} --dry-run' -o small.onnx",
        "sparsecc reduce model.onnx --check './still-wrong.sh {}' --seconds 20",
    ),
    arguments=(options.model(),),
    sections={
        "Failure": (
            click.Option(
                ["--check"],
                required=True,
                metavar="COMMAND",
                help="Fails (the same exit code) as long as the fault is there; {} stands for the model.",
            ),
            click.Option(["--seconds"], type=float, help="Time for one run of the command.  [default: 60]"),
        ),
        "Output": (
            click.Option(["-o", "--output"], type=click.Path(), metavar="FILE", help="The reduced model."),
        ),
    },
)
