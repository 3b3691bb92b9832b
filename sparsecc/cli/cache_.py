"""`sparsecc cache`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from sparsecc.cli.command import Command
from sparsecc.cli.terminal import Terminal
from sparsecc.cli.values import Value
from sparsecc.cli.view import Block, Grid, Line
from sparsecc.options import reading


def run(terminal: Terminal, given: dict[str, Any]) -> None:
    """Show what the cache holds, after making it smaller where that was asked."""
    from sparsecc.system.cache import cache_folder, rooms

    found = rooms()
    limit = 0 if given.get("clear") else given.get("trim")
    if limit is not None:
        for room in found.values():
            room.trim(limit)
    rows = [
        {"name": name, "entries": held[0], "bytes": held[1], "limit": room.limit}
        for name, room in found.items()
        for held in (room.held(),)
    ]
    terminal.result({"schema": "sparsecc.cache/1", "folder": str(cache_folder()), "caches": rows}, cache_view)


def cache_view(found: Mapping[str, Any]) -> list[Block]:
    """One row per cache."""
    rows = [
        (one["name"], str(one["entries"]), _megabytes(one["bytes"]), _megabytes(one["limit"]))
        for one in found["caches"]
    ]
    return [
        Line(str(found["folder"]), "title"),
        Line(""),
        Grid(("cache", ">entries", ">MB", ">at most"), rows),
    ]


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f}"


command = Command(
    "cache",
    run,
    about="Show what the cache holds. It may be removed at any time: what is missing is made again.",
    examples=("sparsecc cache", "sparsecc cache --trim 500MB", "sparsecc cache --clear"),
    sections={
        "Making room": (
            click.Option(
                ["--trim"],
                type=Value("SIZE", reading.size),
                help="Remove what was used longest ago until each cache has this size.",
            ),
            click.Option(["--clear"], is_flag=True, help="Remove everything."),
        )
    },
)
