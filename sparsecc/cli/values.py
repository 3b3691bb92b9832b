"""Option values on the command line: read by a function of the text, whose complaint becomes the error."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import click

from sparsecc.errors import InputError


class Value(click.ParamType[Any]):
    """A value read by a function of the text; ValueError's text becomes the error. `names` are those completed."""

    def __init__(self, name: str, read: Callable[[str], Any], names: Collection[str] = ()) -> None:
        self.name = name
        self.read = read
        self.names = names

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return self.read(str(value).strip())
        except (ValueError, InputError) as error:
            self.fail(str(error), param, ctx)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[click.shell_completion.CompletionItem]:
        from click.shell_completion import CompletionItem

        return [CompletionItem(name) for name in self.names if name.startswith(incomplete)]
