"""What all commands share: sections of options, the options of every command, examples in the help."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click

from sparsecc.cli.run_log import trail
from sparsecc.cli.terminal import Terminal

DEBUG = "On an error, show the traceback and keep a folder for a bug report."

Run = Callable[[Terminal, dict[str, Any]], int | None]
"""A command's body: the terminal, and the options that the user gave. Returns an exit code, or None for 0."""


def shared_options() -> list[click.Parameter]:
    """The options that every command has."""
    return [
        click.Option(["as_json", "--json"], is_flag=True, help="Print the result as JSON on stdout."),
        click.Option(["-q", "--quiet"], is_flag=True, help="Print nothing but errors (and JSON if asked)."),
        click.Option(["-v", "--verbose"], is_flag=True, help="Log every step to stderr."),
        click.Option(
            ["--log-json"],
            is_flag=True,
            expose_value=False,
            help="Log every step to stderr, one JSON object a line: time, level, stage.",
        ),
        click.Option(["--debug"], is_flag=True, expose_value=False, help=DEBUG),
    ]


class Command(click.Command):
    """A command whose help shows its options in sections, and whose body gets only what was given.

    Options left out arrive as absent keys, so that the defaults live in one place: the Python API.
    """

    def __init__(
        self,
        name: str,
        run: Run,
        *,
        about: str,
        examples: Sequence[str],
        arguments: Sequence[click.Argument] = (),
        sections: Mapping[str, Sequence[click.Parameter]],
    ) -> None:
        self.sections = {**sections, "On the terminal": shared_options()}
        options = [option for section in self.sections.values() for option in section]
        lines = "\n".join(f"  {example}" for example in examples)
        super().__init__(
            name,
            params=[*arguments, *options],
            callback=lambda **values: _call(run, values),
            help=about,
            epilog=f"\b\nExamples:\n{lines}",
            context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
        )

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        shown = dict(self.sections)
        last = next(reversed(shown))
        shown[last] = [*shown[last], *filter(None, [self.get_help_option(ctx)])]
        for title, options in shown.items():
            records = [option.get_help_record(ctx) for option in options]
            with formatter.section(title):
                formatter.write_dl([record for record in records if record is not None])


def _call(run: Run, values: dict[str, Any]) -> int | None:
    terminal = Terminal(
        as_json=values.pop("as_json"), quiet=values.pop("quiet"), verbose=values.pop("verbose")
    )
    given = {name: value for name, value in values.items() if _is_given(value)}
    trail().options = dict(given)
    return run(terminal, given)


def _is_given(value: Any) -> bool:
    """A zero is a value; an absent option is None, an empty tuple or an unset flag."""
    return value is not None and value is not False and value != ()
