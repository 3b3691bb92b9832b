"""`sparsecc search`."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from sparsecc.cli import options
from sparsecc.cli.command import Command
from sparsecc.cli.run_log import trail
from sparsecc.cli.terminal import Terminal
from sparsecc.cli.view import Block, Grid, Line
from sparsecc.options import SearchCall, rows_of
from sparsecc.options.places import default_search
from sparsecc.options.row import Row
from sparsecc.options.table import TRIED


def run(terminal: Terminal, given: dict[str, Any]) -> None:
    """Search, and show the front."""
    from sparsecc.search.api import search
    from sparsecc.search.ledger import NAME

    folder = Path(given.get("output") or default_search(given["model"]))
    for name in (NAME, "front.html"):  # a line for each finished point, and all of them, ended or not
        trail().will_write(folder / name)
    with terminal.progress() as on_event:
        model = given.pop("model")
        found = search(model, **given, on_event=on_event)
    terminal.result(found, partial(search_view, model=str(model)))


def search_view(found: Mapping[str, Any], model: str) -> list[Block]:
    """The front by the first cost that was measured; what makes a point of `model`, as it was named; where the rest
    is."""
    from sparsecc.report.front_page import FrontPage

    page = FrontPage.of(found)
    cost, names = next(iter(found["fronts"].items()), ("macs", []))
    points = {point["id"]: point for point in found["points"]}
    columns = [f">{name}" if place else name for place, name in enumerate(page.columns[:-1])]
    rows = [[*row[:-1], name] for row, name in zip(page.rows, page.ids[: len(names)], strict=False)]
    blocks: list[Block] = [
        Line(f"{page.title}: {len(names)} of {len(found['points'])} points on the front by {cost}", "title"),
        Line(""),
        Grid([*columns, "point"], rows),
    ]
    blocks += [Line(f"not made: {what}: {why}", "warn") for what, why in page.failed]
    if cost in found["fronts"] and not names:
        blocks.append(Line(f"{found['model']['name']} as it came beats every point by {cost}", "warn"))
    if names:
        again = points[names[0]]["compile"].replace(names[0], "POINT")
        blocks.append(Line(f"compile one again: sparsecc compile {shlex.quote(model)} {again}", "dim"))
    return [*blocks, Line(f"all points: {found['folder']}/front.html", "dim")]


def search_rows() -> list[Row]:
    """What the command line says of a search: neither what each point sets nor goals, which no search has."""
    rows = rows_of(SearchCall)
    rows["metric"] = replace(rows["metric"], group=TRIED, help="What the ratios count.")
    set_by_points = {row.tries for row in rows.values()}
    return [row for name, row in rows.items() if name not in set_by_points and not (row.alone or row.is_goal)]


command = Command(
    "search",
    run,
    about="The whole front of a goal: MODEL with every lever as far as it pays; what nothing beats is kept, by "
    "latency, size and work against accuracy. What is said of ratios and types is obeyed. Finished points are kept: "
    "an interrupted search writes its front, and goes on when it is started again.",
    examples=(
        "sparsecc search model.onnx --calib samples.npz --eval score.py:accuracy -o front/",
        "sparsecc search model.onnx --ratios 0.3,0.5,0.7 --criteria auto,l2 --quantizes none,int8 --jobs 4",
        "sparsecc compile model.onnx --recipe front/points/3f2a9c.json -o out/",
    ),
    arguments=(options.model(),),
    sections=options.sections(search_rows()),
)
