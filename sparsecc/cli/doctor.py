"""`sparsecc doctor`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sparsecc.cli.command import Command
from sparsecc.cli.terminal import Terminal
from sparsecc.cli.view import Block, Grid, Line


def run(terminal: Terminal, given: dict[str, Any]) -> None:
    """Look at this machine and show what works."""
    from sparsecc import api

    terminal.result(api.doctor(), doctor_view)


def doctor_view(found: Mapping[str, Any]) -> list[Block]:
    """Targets and devices, each with its version or with what it needs."""
    about = [(str(name), str(value)) for name, value in (found.get("versions") or {}).items()]
    missing = [row for kind in ("targets", "devices") for row in found.get(kind, ()) if not row["ok"]]
    blocks: list[Block] = [
        Grid(("", "target", "version", "note"), [_row(row) for row in found.get("targets", ())]),
        Line(""),
        Grid(("", "device", "version", "note"), [_row(row) for row in found.get("devices", ())]),
    ]
    if sandbox := found.get("sandbox"):
        told = f"sandbox of the worker: {sandbox['told']}"
        more = f" ({sandbox['remedy']})" if sandbox["remedy"] else ""
        blocks += [Line(""), Line(told + more, "" if sandbox["holds"] else "warn")]
    for one in found.get("collisions", ()):
        blocks += [Line(""), Line(f"{one['told']}: run {one['remedy']}", "warn")]
    if about:
        blocks += [Line(""), Grid(("installed", "version"), about)]
    remedies = [f"For {row['name']}: {row['remedy']}" for row in missing if row.get("remedy")]
    return [*blocks, *([Line("")] if remedies else []), *(Line(remedy, "warn") for remedy in remedies)]


def _row(row: Mapping[str, Any]) -> tuple[str, str, str, str]:
    mark = "✓" if row["ok"] else "✗"
    return mark, str(row["name"]), str(row.get("version") or ""), str(row.get("reason") or "")


command = Command(
    "doctor",
    run,
    about="Show which targets and devices work here, and the command that provides a missing one.",
    examples=("sparsecc doctor", "sparsecc doctor --json"),
    sections={},
)
