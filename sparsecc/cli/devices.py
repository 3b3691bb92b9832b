"""`sparsecc devices`: add, list, test."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from sparsecc.cli.command import Command
from sparsecc.cli.terminal import Terminal
from sparsecc.cli.view import Block, Grid, Line

SECONDS = 30.0
"""How long a question to a device may take."""

QUESTIONS = {
    "system": ("uname", "-srm"),
    "python": ("python3", "--version"),
    "onnxruntime": (
        *("python3", "-c"),
        "import os; os.environ['ORT_DISABLE_TELEMETRY'] = '1'; import onnxruntime; print(onnxruntime.__version__)",
    ),
}


def add(terminal: Terminal, given: dict[str, Any]) -> None:
    """Keep a device under a name."""
    from sparsecc.cli.device_book import add_device, book_path

    add_device(given["name"], given["address"])
    terminal.note(f"kept '{given['name']}' in {book_path()}")
    terminal.result({"name": given["name"], "address": given["address"]}, lambda added: [])


def show(terminal: Terminal, given: dict[str, Any]) -> None:
    """All devices that have a name."""
    from sparsecc.cli.device_book import read_book

    devices = [{"name": name, "address": at} for name, at in {"local": "local", **read_book()}.items()]
    terminal.result({"schema": "sparsecc.devices/1", "devices": devices}, devices_view)


def test(terminal: Terminal, given: dict[str, Any]) -> None:
    """Connect to a device and ask what it is."""
    from sparsecc.cli.device_book import address_of
    from sparsecc.devices import open_device

    address = address_of(given["name"])
    facts = {}
    with open_device(address) as device:
        for name, question in QUESTIONS.items():
            done = device.run(question, timeout=SECONDS)
            facts[name] = done.stdout.strip() if done.status == 0 else None
    found = {"schema": "sparsecc.device/1", "name": given["name"], "address": address, "facts": facts}
    terminal.result(found, device_view)


def devices_view(found: Mapping[str, Any]) -> list[Block]:
    """Names and addresses."""
    return [Grid(("device", "address"), [(one["name"], one["address"]) for one in found["devices"]])]


def device_view(found: Mapping[str, Any]) -> list[Block]:
    """What the device answered."""
    rows = [(name, fact if fact is not None else "not found there") for name, fact in found["facts"].items()]
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
                "sparsecc devices add phone adb:R58M123",
            ),
            arguments=(click.Argument(["name"]), click.Argument(["address"])),
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
    ],
)
