"""What all commands share: sections of options, the options of every command, examples in the help."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from sparsecc.cli.options import RowOption
from sparsecc.cli.run_log import DEBUG, trail
from sparsecc.cli.terminal import Terminal
from sparsecc.options.renamed import old_flags

MANY = 24
"""Options of which a short help shows those that most need."""
ALL, RENAMED = "sparsecc.cli.all", "sparsecc.cli.renamed"
"""Keys of what a context knows besides: whether all options are shown; lines about old flags."""
SWITCH = "SPARSECC_SANDBOX"
"""Read by `sparsecc/system/sandbox.py`, which `--help` need not load."""

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
        click.Option(
            ["--no-sandbox"],
            is_flag=True,
            help="Read files outside the sandbox that `sparsecc doctor` tells of.",
        ),
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
        self.has_more = any(_is_rare(option) for option in options) and len(options) > MANY
        if self.has_more:
            options.append(_help_all())
        lines = "\n".join(f"  {example}" for example in examples)
        super().__init__(
            name,
            params=[*arguments, *options],
            callback=lambda **values: _call(run, values, self),
            help=about,
            epilog=f"\b\nExamples:\n{lines}",
            context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
        )

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        shown = dict(self.sections)
        if self.has_more and not ctx.meta.get(ALL):
            shown = {title: [one for one in options if not _is_rare(one)] for title, options in shown.items()}
        last = next(reversed(shown))
        helps = [self.get_help_option(ctx), *(one for one in self.params if one.name == "help_all")]
        shown[last] = [*shown[last], *filter(None, helps)]
        for title, options in shown.items():
            records = [record for option in options if (record := option.get_help_record(ctx)) is not None]
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Old flags are read as those of now, and the command says so once it knows how."""
        args, ctx.meta[RENAMED] = current_flags(args)
        return super().parse_args(ctx, args)


def current_flags(args: Sequence[str]) -> tuple[list[str], list[str]]:
    """(the words of a command line with the flags of now, a line for each that was an old one)."""
    old, found, told = old_flags(), [], []
    end = list(args).index("--") if "--" in args else len(args)
    for word in args[:end]:
        flag, equals, value = word.partition("=")
        if flag in old:
            told.append(f"{flag} is called {old[flag]} now: its old name goes with the next release")
        found.append(old.get(flag, flag) + equals + value)
    return [*found, *args[end:]], told


def _is_rare(option: click.Parameter) -> bool:
    """Whether the short help leaves it out."""
    return isinstance(option, RowOption) and not option.row.is_common


def _help_all() -> click.Option:
    def show(ctx: click.Context, option: click.Parameter, wanted: bool) -> None:
        if wanted:
            ctx.meta[ALL] = True
            click.echo(ctx.get_help())
            ctx.exit()

    return click.Option(
        ["--help-all"],
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=show,
        help="Show every option and exit.",
    )


def _call(run: Run, values: dict[str, Any], command: Command) -> int | None:
    from sparsecc.system.temp_folders import sweep_left

    terminal = Terminal(
        as_json=values.pop("as_json"), quiet=values.pop("quiet"), verbose=values.pop("verbose")
    )
    for line in click.get_current_context().meta.get(RENAMED, ()):
        terminal.note(line)
    sweep_left(
        Path()
    )  # what a killed command left here: that in the temporary folder goes with the next worker
    rows = {option.name for option in command.params if isinstance(option, RowOption)}
    with _switched(off=values.pop("no_sandbox")):
        given = {name: value for name, value in values.items() if _is_given(value, name in rows)}
        trail().options = dict(given)
        return run(terminal, given)


@contextmanager
def _switched(*, off: bool) -> Iterator[None]:
    """Without a sandbox, whatever the environment says, for as long as the command runs."""
    before = os.environ.get(SWITCH)
    if off:
        os.environ[SWITCH] = "off"
    try:
        yield
    finally:
        if off:
            os.environ.pop(SWITCH)
            os.environ.update({} if before is None else {SWITCH: before})


def _is_given(value: Any, is_row: bool) -> bool:
    """A zero is a value; an absent option is None, an empty tuple or an unset flag. Flags of rows are None unset."""
    return value is not None and value != () and (is_row or value is not False)
