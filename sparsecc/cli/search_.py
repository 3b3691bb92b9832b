"""`sparsecc search`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from sparsecc.cli import options, values
from sparsecc.cli.command import Command
from sparsecc.cli.terminal import Terminal
from sparsecc.cli.values import Name, Value
from sparsecc.cli.view import Block, Grid, Line
from sparsecc.options import METRICS


def run(terminal: Terminal, given: dict[str, Any]) -> None:
    """Search, and show the front."""
    if given.pop("no_measure", False):
        given["measure"] = False
    options.shape_inputs(given)
    from sparsecc.search.api import search

    with terminal.progress() as on_event:
        found = search(given.pop("model"), **given, on_event=on_event)
    terminal.result(found, search_view)


def search_view(found: Mapping[str, Any]) -> list[Block]:
    """The front by the first cost that was measured; where the rest is."""
    from sparsecc.report.front_page import FrontPage

    page = FrontPage.of(found)
    cost, names = next(iter(found["fronts"].items()), ("macs", []))
    columns = [f">{name}" if 0 < place < 5 else name for place, name in enumerate(page.columns)]
    blocks: list[Block] = [
        Line(f"{page.title}: {len(names)} of {len(found['points'])} points on the front by {cost}", "title"),
        Line(""),
        Grid(columns, page.rows[: len(names)]),
    ]
    blocks += [Line(f"not made: {what}: {why}", "warn") for what, why in page.failed]
    return [*blocks, Line(f"all points: {found['folder']}/front.html", "dim")]


def listed(text: str) -> tuple[str, ...]:
    """Names with commas between them."""
    names = tuple(part.strip() for part in text.split(",") if part.strip())
    if not names:
        raise ValueError(f"'{text}' names nothing: write for example auto,l2")
    return names


def ratios(text: str) -> tuple[float, ...]:
    """Shares to remove, with commas between them."""
    return tuple(values.ratio(part) for part in listed(text))


def quantizes(text: str) -> tuple[str | None, ...]:
    """Types, with commas between them; `none` leaves the types as they are."""
    return tuple(None if name == "none" else name for name in listed(text))


def _option(*names: str, type: click.ParamType[Any] | None = None, **settings: Any) -> click.Option:
    return click.Option(list(names), type=type, **settings)


SPACE = (
    _option("--ratios", type=Value("SHARES", ratios), help="Shares to remove.  [default: 0.2,0.35,0.5,0.65]"),
    _option("--metric", type=Name("metric", METRICS), help="What the ratios count.  [default: macs]"),
    _option(
        "criteria",
        "--criteria",
        type=Value("NAMES", listed),
        help="Criteria to try, e.g. auto,wanda (docs/methods.md).  [default: auto]",
    ),
    _option(
        "--allocators",
        type=Value("NAMES", listed),
        help="Allocators to try, e.g. auto,global (docs/methods.md).  [default: auto]",
    ),
    _option(
        "--recovers",
        type=Value("NAMES", listed),
        help="Repairs to try, e.g. none,reconstruct.  [default: auto]",
    ),
    _option(
        "--quantizes", type=Value("TYPES", quantizes), help="Types to try, e.g. none,int8.  [default: none]"
    ),
    _option(
        "--rounds",
        type=click.IntRange(min=0),
        help="How often to look between neighbours on the front.  [default: 1]",
    ),
)
DATA = (
    _option(
        "calibration",
        "--calib",
        metavar="PATH|FILE.py:FUNCTION",
        help="Samples to calibrate on, as for `sparsecc compile`.",
    ),
    options.general(),
    _option(
        "evaluate",
        "--eval",
        metavar="FILE.py:FUNCTION",
        help="A function that scores a model; without it outputs are compared with the dense model's.",
    ),
    options.inputs(),
    _option("--seed", type=click.IntRange(min=0), help="Seed of everything random.  [default: 0]"),
)
RUNNING = (
    options.target(),
    options.device(),
    options.threads(),
    _option("--no-measure", is_flag=True, help="Skip the latency measurements: the front is one of MACs."),
    _option("--jobs", type=click.IntRange(min=1), help="Compiles at once on this machine.  [default: 1]"),
    _option(
        "--cluster",
        metavar="ADDRESS",
        help="A Dask scheduler, e.g. tcp://host:8786: compile on its workers, which see the same paths.",
    ),
    _option(
        "--deadline", type=Value("TIME", values.duration_s), help="Give each point up after this, e.g. 10min."
    ),
    _option("memory", "--memory-limit", type=Value("SIZE", values.size), help="Memory of each worker."),
)
WRITING = (
    _option(
        "-o",
        "--output",
        type=click.Path(),
        metavar="DIR",
        help="The search's folder; one that is there is continued.  [default: MODEL.search]",
    ),
)

command = Command(
    "search",
    run,
    about="Compile MODEL in many ways and keep those that nothing beats: the front of latency, size and work "
    "against accuracy. Finished points are kept: an interrupted search goes on when it is started again.",
    examples=(
        "sparsecc search model.onnx --calib samples.npz --eval score.py:accuracy -o front/",
        "sparsecc search model.onnx --ratios 0.3,0.5,0.7 --criteria auto,l2 --quantizes none,int8 --jobs 4",
        "sparsecc compile model.onnx --recipe front/points/3f2a9c.json -o out/",
    ),
    arguments=(options.model(),),
    sections={
        "What to try": SPACE,
        "Data": DATA,
        "Target and running": RUNNING,
        "Output": WRITING,
    },
)
