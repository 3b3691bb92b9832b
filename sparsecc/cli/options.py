"""Options of the command line: those of the table, and a few more that commands share."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import click

from sparsecc.cli.values import Value
from sparsecc.options import CompareCall, CompileCall, InspectCall, ProfileCall, SearchCall, rows_of
from sparsecc.options.row import FLAG, By, Row
from sparsecc.options.table import GROUPS

ROWS = {
    name: row
    for table in (InspectCall, ProfileCall, CompareCall, SearchCall, CompileCall)
    for name, row in rows_of(table).items()
}


class RowOption(click.Option):
    """The option of a row. What is not given is None; what is given has the form in which the API takes it."""

    def __init__(self, row: Row, *, help: str | None = None) -> None:
        text = help or row.about()
        shown = row.shown_default
        about = text if shown is None else f"{text}  [default: {shown}]"
        flags = [row.name, *row.flags]
        settings: dict[str, Any] = {"is_flag": True}
        if row.kind is not FLAG:
            kind = Value(row.kind.metavar, row.kind.read, row.kind.names)
            settings = {"type": kind, "metavar": row.kind.metavar, "multiple": row.kind.repeated}
        super().__init__(flags, help=about, callback=self._settled, **settings)
        self.row = row

    def _settled(self, context: click.Context, option: click.Parameter, value: Any) -> Any:
        """A flag that was given turns the default around; values of a repeated option become one."""
        if self.row.kind is FLAG:
            return not self.row.default if value else None
        if self.row.name == "device" and value is not None:
            return known_device(value)
        return _joined(value) if self.row.kind.repeated else value


def _joined(values: tuple[Any, ...] | None) -> Any:
    """Mappings one over the other, lists one behind the other; None where there are none."""
    if not values:
        return None
    if isinstance(values[0], dict):
        return {key: one for value in values for key, one in value.items()}
    return tuple(one for value in values for one in value)


def option(name: str, *, help: str | None = None) -> RowOption:
    """The option of that row; `help` where a command says more or other of it."""
    return RowOption(ROWS[name], help=help)


def sections(rows: Iterable[Row]) -> dict[str, list[click.Parameter]]:
    """The options of the rows that the command line may set, by group."""
    shown = [row for row in rows if By.COMMAND_LINE in row.by]
    grouped = {group: [RowOption(row) for row in shown if row.group == group] for group in GROUPS}
    return {group: list(options) for group, options in grouped.items() if options}


def model(name: str = "model") -> click.Argument:
    """A model or bundle on disk."""
    return click.Argument([name], type=click.Path())


def known_device(name: str) -> str:
    """The address of the device that was named."""
    from sparsecc.cli.device_book import address_of

    return address_of(name)


def known_devices(context: click.Context, option: click.Parameter, value: str | None) -> list[str] | None:
    """The addresses of the devices that were named, with commas."""
    return None if value is None else [known_device(name.strip()) for name in value.split(",")]


def devices() -> click.Option:
    """`--device` where several are taken."""
    return click.Option(
        ["--device"],
        callback=known_devices,
        metavar="DEVICE[,DEVICE…]",
        help="Where to measure: local, a NAME of `sparsecc devices list`, ssh://USER@HOST or adb:SERIAL; several "
        "are measured in parallel.  [default: local]",
    )


def key(help: str) -> click.Option:
    """`--key`, a public one."""
    return click.Option(["--key"], type=click.Path(), metavar="PEM", help=help)


def html(what: str) -> click.Option:
    """`--html`; `what` names what the page shows."""
    return click.Option(
        ["--html"], type=click.Path(), metavar="FILE", help=f"Also write {what} as one HTML file."
    )
