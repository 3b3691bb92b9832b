"""`sparsecc sign`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from sparsecc.cli import options
from sparsecc.cli.command import Command
from sparsecc.cli.run_log import trail
from sparsecc.cli.terminal import Terminal
from sparsecc.cli.view import Block, Line


def run(terminal: Terminal, given: dict[str, Any]) -> None:
    """Sign the bundle."""
    from sparsecc import api
    from sparsecc.bundle.folder import SIGNATURE

    trail().will_write(f"{given['bundle']}/{SIGNATURE}")
    with terminal.progress() as on_event:
        signed = api.sign(given["bundle"], given["key"], on_event=on_event)
    terminal.result(signed, sign_view)


def sign_view(signed: Mapping[str, Any]) -> list[Block]:
    """Where the signature lies."""
    return [Line(f"Signed: {signed['bundle']}/{signed['signature']}.", "good")]


command = Command(
    "sign",
    run,
    about="Sign BUNDLE, so that `sparsecc verify --key` shows who made it (OpenSSF model signing).",
    examples=(
        "openssl ecparam -name prime256v1 -genkey -noout -out key.pem",
        "openssl ec -in key.pem -pubout -out key.pub",
        "sparsecc sign out/ --key key.pem",
        "sparsecc sign out/ --key encrypted.pem --json",
        "sparsecc verify out/ --key key.pub",
    ),
    arguments=(options.model("bundle"),),
    sections={
        "Key": (
            click.Option(
                ["--key"],
                type=click.Path(),
                metavar="PEM",
                required=True,
                help="Private key on P-256, P-384 or P-521; its password in SPARSECC_KEY_PASSWORD.",
            ),
        )
    },
)
