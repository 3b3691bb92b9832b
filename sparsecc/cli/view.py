"""What a view is made of, before it is drawn: lines and grids of plain text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Line:
    """A line of text; `style` is empty or one of title, good, bad, warn, dim."""

    text: str
    style: str = ""


@dataclass(frozen=True)
class Grid:
    """A table. Columns whose name starts with `>` are right-aligned. A row's first cell is its label."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""


Block = Line | Grid
