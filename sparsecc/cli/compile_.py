"""`sparsecc compile`."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from typing import Any

import click

from sparsecc.bundle.rechecked import command_for
from sparsecc.cli import options
from sparsecc.cli.command import Command
from sparsecc.cli.compile_view import compile_view
from sparsecc.cli.recipe import above_recipe
from sparsecc.cli.run_log import trail
from sparsecc.cli.terminal import Terminal
from sparsecc.errors import GoalError
from sparsecc.options import CompileCall, rows_of
from sparsecc.options.places import default_bundle
from sparsecc.options.table import OUTPUT


def run(terminal: Terminal, given: dict[str, Any]) -> None:
    """Compile, and say what came of it. GoalError where a device was lost before it had measured."""
    model, recipe = given.pop("model"), given.pop("recipe", None)
    if recipe is not None:
        given, told = above_recipe(recipe, given)
        for line in told:
            terminal.note(line)
    asked = CompileCall.of(given)  # what cannot be is said before anything is imported
    from sparsecc import api

    command = shlex.join(["sparsecc", *sys.argv[1:]])
    if "dry_run" not in given:
        trail().will_write(given.get("output") or default_bundle(model))
    with terminal.progress() as on_event:
        result = api.compile(model, **given, on_event=on_event)
    report = {**result.report, "bundle": str(result.bundle) if result.bundle else None, "command": command}
    if result.bundle:
        folder = str(given.get("output") or default_bundle(model))
        report["verify"] = command_for(folder, model, result.plan, given)
    terminal.result(report, compile_view)
    if "unmeasured" in report:
        raise GoalError(f"{report['bundle']} is written, but {report['unmeasured']}")
    if missed := _out_of_reach(report, asked.ratio) or _missed(report):
        raise GoalError(missed)


NEAR = 0.5
"""The share of an asked ratio below which what can go is nothing near it."""


def _missed(report: Mapping[str, Any]) -> str | None:
    """What to say where a goal is not met, though what is written is near it."""
    goal = report.get("goal")
    if goal is None or goal["met"] is not False or not report["bundle"]:
        return None
    return f"{report['bundle']} is written, but misses the goal by {goal['excess']:.0%}: see what was tried"


def _out_of_reach(report: Mapping[str, Any], asked: float | None) -> str | None:
    """What to say where nothing near the asked ratio can go."""
    removed = report.get("removed")
    if not asked or removed is None or removed["reached"] or removed["share"] >= NEAR * asked:
        return None
    written = f"{report['bundle']} is written, but " if report["bundle"] else ""
    most = f"only {removed['share']:.1%} of the {removed['metric']} can go, not {asked:.1%}"
    return f"{written}{most}: ask for less, or see what is pinned and why"


SECTIONS = options.sections(rows_of(CompileCall).values())
RECIPE = click.Option(
    ["--recipe"],
    type=click.Path(),
    metavar="FILE",
    help="Take options from a recipe.yaml; those given here override it.",
)

command = Command(
    "compile",
    run,
    about="Make MODEL smaller and faster for the runtime it will run on, prove it, and write a bundle.",
    examples=(
        "sparsecc compile model.onnx --target onnxruntime --ratio 0.5 -o out/",
        "sparsecc compile model.onnx --speedup 2 --calib samples.npz --eval score.py:accuracy -o out/",
        "sparsecc compile model.onnx --ratio 0.3 --quantize int8 --calib images/ --json > result.json",
    ),
    arguments=(options.model(),),
    sections={**SECTIONS, OUTPUT: [*SECTIONS[OUTPUT], RECIPE]},
)
