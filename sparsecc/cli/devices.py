"""`sparsecc devices`: add, remove, list, test."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from sparsecc.cli.command import Command
from sparsecc.cli.terminal import Terminal
from sparsecc.cli.view import Block, Grid, Line


def add(terminal: Terminal, given: dict[str, Any]) -> None:
    """Keep a device under a name."""
    from sparsecc.cli.device_book import add_device, book_path

    python = given.get("python")
    address = f"{given['address']}?python={python}" if python else given["address"]
    add_device(given["name"], address)
    terminal.note(f"kept '{given['name']}' in {book_path()}")
    terminal.result({"name": given["name"], "address": address}, lambda added: [])


def remove(terminal: Terminal, given: dict[str, Any]) -> None:
    """Forget a name."""
    from sparsecc.cli.device_book import book_path, remove_device

    address = remove_device(given["name"])
    terminal.note(f"removed '{given['name']}' from {book_path()}")
    terminal.result({"name": given["name"], "address": address}, lambda removed: [])


def show(terminal: Terminal, given: dict[str, Any]) -> None:
    """All devices that have a name."""
    from sparsecc.cli.device_book import read_book

    devices = [{"name": name, "address": at} for name, at in {"local": "local", **read_book()}.items()]
    terminal.result({"schema": "sparsecc.devices/1", "devices": devices}, devices_view)


def test(terminal: Terminal, given: dict[str, Any]) -> None:
    """Connect to a device and ask what it is."""
    from sparsecc.cli.device_book import address_of
    from sparsecc.devices import open_device
    from sparsecc.devices.ready import ask

    address = address_of(given["name"])
    with open_device(address) as device:
        facts = asdict(ask(device))
    found = {"schema": "sparsecc.device/1", "name": given["name"], "address": address, "facts": facts}
    terminal.result(found, device_view)


def table(terminal: Terminal, given: dict[str, Any]) -> None:
    """Measure what a device makes of layers in each type, for goals where it is not at hand."""
    from sparsecc.cli.device_book import address_of
    from sparsecc.cli.device_table import device_table

    terminal.note("some minutes: small models are compiled and timed on the device")
    found = device_table(Path(given["output"]), given["target"], address_of(given["name"]), given["threads"])
    terminal.result(found, table_view)


def table_view(found: Mapping[str, Any]) -> list[Block]:
    """The rates."""
    rows = [
        (f"multiply-accumulates a second in {kind}", f"{rate:.3g}") for kind, rate in found["macs"].items()
    ]
    rows += [("bytes of weights a second", f"{found['bytes']:.3g}")]
    rows += [("seconds of a kernel beside its work", f"{found['launch']:.3g}")]
    told = f"{found['output']}: give it to compiles elsewhere with --device-table"
    return [Line(told, "good"), Line(""), Grid(("", f">{found['target']}"), rows)]


def devices_view(found: Mapping[str, Any]) -> list[Block]:
    """Names and addresses."""
    return [Grid(("device", "address"), [(one["name"], one["address"]) for one in found["devices"]])]


def device_view(found: Mapping[str, Any]) -> list[Block]:
    """What the device answered."""
    facts = {**found["facts"]}
    if (free := facts.pop("free_bytes")) is not None:
        facts["free disk"] = f"{free >> 20} MiB"
    rows = [(name, fact if fact is not None else "not found there") for name, fact in facts.items()]
    return [Line(f"{found['name']} answers.", "good"), Line(""), Grid(("", "on the device"), rows)]


command = click.Group(
    "devices",
    help="Keep, list and test the devices on which models are measured (`--device NAME`).",
    epilog="\b\nExamples:\n  sparsecc devices add board ssh://pi@192.0.2.7\n  sparsecc devices test board",
    context_settings={"help_option_names": ["-h", "--help"]},
    commands=[
        Command(
            "add",
            add,
            about="Keep ADDRESS (ssh://user@host[:port] or adb:SERIAL) under NAME.",
            examples=(
                "sparsecc devices add board ssh://pi@192.0.2.7",
                "sparsecc devices add board ssh://board-in-ssh-config --python /opt/venv/bin/python",
                "sparsecc devices add phone adb:R58M123",
            ),
            arguments=(click.Argument(["name"]), click.Argument(["address"])),
            sections={
                "On the device": (
                    click.Option(
                        ["--python"],
                        metavar="PATH",
                        help="The Python to measure with, as ?python=PATH behind the address.  [default: python3]",
                    ),
                )
            },
        ),
        Command(
            "remove",
            remove,
            about="Forget the device called NAME.",
            examples=("sparsecc devices remove board",),
            arguments=(click.Argument(["name"]),),
            sections={},
        ),
        Command(
            "list",
            show,
            about="List the devices that have a name.",
            examples=("sparsecc devices list", "sparsecc devices list --json"),
            sections={},
        ),
        Command(
            "test",
            test,
            about="Connect to NAME (or an address) and show what it runs.",
            examples=("sparsecc devices test board", "sparsecc devices test ssh://pi@192.0.2.7"),
            arguments=(click.Argument(["name"]),),
            sections={},
        ),
        Command(
            "table",
            table,
            about="Measure what NAME (or an address, or local) makes of layers in each type, into a file by which "
            "goals are foretold where it is not at hand: compile --target T --speedup 2 --device-table FILE.",
            examples=(
                "sparsecc devices table board --target onnxruntime-arm64 -o board.json",
                "sparsecc devices table local --target tensorrt -o gpu.json",
            ),
            arguments=(click.Argument(["name"]),),
            sections={
                "What to measure": (
                    click.Option(
                        ["-t", "--target"], metavar="TARGET", default="onnxruntime", help="Runtime."
                    ),
                    click.Option(["--threads"], metavar="N", type=int, default=1, help="Threads of a run."),
                    click.Option(
                        ["-o", "--output"], metavar="FILE", required=True, help="The file to write."
                    ),
                )
            },
        ),
    ],
)
