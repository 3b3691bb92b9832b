"""Draws blocks with rich. Names in them are untrusted: all text goes through the escaper, none is markup."""

from __future__ import annotations

from collections.abc import Sequence
from io import StringIO

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sparsecc.cli.view import Block, Grid, Line
from sparsecc.escaping import one_line

STYLES = {"": "", "title": "bold", "good": "green", "bad": "bold red", "warn": "yellow", "dim": "dim"}
NARROWEST = 40


def draw(blocks: Sequence[Block], *, width: int, colour: bool) -> str:
    """The blocks as text of at most `width` columns; ANSI colours only when asked for."""
    out = StringIO()
    console = Console(
        file=out,
        width=max(width, NARROWEST),
        force_terminal=colour,
        color_system="standard" if colour else None,
        no_color=not colour,
        markup=False,
        highlight=False,
        emoji=False,
    )
    for block in blocks:
        console.print(_line(block) if isinstance(block, Line) else _grid(block))
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


def _line(line: Line) -> Text:
    return Text(one_line(line.text) if line.text else "", style=STYLES[line.style])


def _grid(grid: Grid) -> Table:
    title = Text(one_line(grid.title), style="bold") if grid.title else None
    table = Table(box=SIMPLE_HEAD, title=title, title_justify="left", show_edge=False, pad_edge=False)
    for number, name in enumerate(grid.columns):
        table.add_column(
            Text(one_line(name.lstrip(">"))) if name.lstrip(">") else "",
            justify="right" if name.startswith(">") else "left",
            overflow="fold",
            no_wrap=name.startswith(">"),
            style="bold" if number == 0 and not name.startswith(">") else "",
        )
    for row in grid.rows:
        table.add_row(*(Text(one_line(cell) if cell else "") for cell in row))
    return table
