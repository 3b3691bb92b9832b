"""`sparsecc verify`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from sparsecc.cli import options
from sparsecc.cli.command import Command
from sparsecc.cli.terminal import Terminal
from sparsecc.cli.view import Block, Grid, Line

FAILED, INCOMPLETE = 1, 4


def run(terminal: Terminal, given: dict[str, Any]) -> int:
    """Check the bundle; exit code 1 when a check fails, 4 where one could not be made."""
    from sparsecc import api

    with terminal.progress() as on_event:
        checked = api.verify(given.pop("bundle"), **given, on_event=on_event)
    terminal.result(checked, verify_view)
    return FAILED if _failed(checked) else INCOMPLETE if _unchecked(checked) else 0


def verify_view(checked: Mapping[str, Any]) -> list[Block]:
    """The verdict, then each check."""
    rows = [(_mark(check), str(check["check"]), str(check.get("detail", ""))) for check in checked["checks"]]
    return [_verdict(checked), Line(""), Grid(("", "check", "detail"), rows)]


def _verdict(checked: Mapping[str, Any]) -> Line:
    failed, unchecked, number = _failed(checked), _unchecked(checked), len(checked["checks"])
    if failed:
        return Line(f"{failed} of {number} checks failed.", "bad")
    if unchecked:
        return Line(f"Nothing failed, but {unchecked} of {number} checks were not made.", "warn")
    return Line("The bundle is sound.", "good")


def _failed(checked: Mapping[str, Any]) -> int:
    """How many checks failed; one that could not be made is None and has not failed."""
    return sum(check["ok"] is False for check in checked["checks"])


def _unchecked(checked: Mapping[str, Any]) -> int:
    return sum(check["ok"] is None for check in checked["checks"])


def _mark(check: Mapping[str, Any]) -> str:
    return {True: "✓", False: "✗"}.get(check["ok"], "–")


command = Command(
    "verify",
    run,
    about="Check BUNDLE: every file against the manifest, the plan, and with --model the numerics.",
    examples=(
        "sparsecc verify out/",
        "sparsecc verify out/ --model model.onnx --reproduce",
        "sparsecc verify out/ --model model.onnx --reproduce --calib samples.npz",
        "sparsecc verify out/ --key key.pub",
    ),
    arguments=(options.model("bundle"),),
    sections={
        "Checks": (
            click.Option(
                ["--model"],
                type=click.Path(),
                metavar="ORIGINAL",
                help="Check the outputs against the original.",
            ),
            click.Option(
                ["--reproduce"], is_flag=True, help="Compile the original again and compare the bytes."
            ),
            options.option("calib"),
            options.option("calib_general"),
            options.option("evaluate"),
            options.option("target"),
            options.option("build"),
            options.option("custom_ops"),
            options.key(
                "Check that the bundle is signed by the owner of this public key (see `sparsecc sign`)."
            ),
        )
    },
)
