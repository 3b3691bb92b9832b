"""The root command: which commands there are. Each is imported only when it is called."""

from __future__ import annotations

import difflib
from importlib import import_module

import click

from sparsecc.cli.failure import installed_version
from sparsecc.cli.run_log import DEBUG
from sparsecc.errors import EXIT_CODES

COMMANDS: dict[str, tuple[str, str]] = {
    "compile": ("compile_", "Make a model smaller and faster for the runtime it will run on."),
    "inspect": ("inspect_", "Show what can be removed, what must go together, and what is pinned and why."),
    "search": ("search_", "Find the front of latency, size and work against accuracy."),
    "profile": ("profile_", "Measure the latency of a model, layer by layer."),
    "compare": ("compare_", "Compare two models: outputs and latency, interleaved."),
    "gate": ("gate_", "Fail a CI job when a model became slower than its baseline."),
    "build": ("build_", "Finish a bundle that --emit onnx left: build its engine, here or on a device."),
    "verify": ("verify_", "Check a bundle: its files, its plan and its numerics."),
    "sign": ("sign_", "Sign a bundle with a private key."),
    "reduce": ("reduce_", "Shrink a failing model to the fewest nodes that still fail."),
    "cache": ("cache_", "Show what the cache holds, and make room."),
    "doctor": ("doctor", "Show which targets and devices work here, and what the others need."),
    "devices": ("devices", "Add, remove, list and test the devices to measure on."),
}


def exit_codes() -> str:
    """The table of exit codes as lines of the help."""
    return "\n".join(f"  {code:3d}  {meaning}" for code, meaning in EXIT_CODES.items())


EPILOG = f"""\b
Examples:
  sparsecc inspect model.onnx
  sparsecc compile model.onnx --target onnxruntime --ratio 0.5 -o out/
  sparsecc compare model.onnx out/

\b
Exit codes of all commands:
{exit_codes()}

\b
Shell completion (bash; zsh and fish alike):
  eval "$(_SPARSECC_COMPLETE=bash_source sparsecc)"
"""


class LazyCommands(click.Group):
    """A group that lists its commands from the table and imports one when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = import_module(f"sparsecc.cli.{COMMANDS[cmd_name][0]}").command
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] == "help":
            args = self._help_of(ctx, args[1:2], args[2:])
        if args[0] not in COMMANDS and not args[0].startswith("-") and not ctx.resilient_parsing:
            close = difflib.get_close_matches(args[0], COMMANDS, n=1, cutoff=0.5)
            hint = f"did you mean '{close[0]}'?" if close else f"commands are {', '.join(COMMANDS)}"
            ctx.fail(f"no command '{args[0]}': {hint}")
        return super().resolve_command(ctx, args)

    def _help_of(self, ctx: click.Context, name: list[str], more: list[str]) -> list[str]:
        """What `help NAME --all` stands for."""
        if more and (len(more) > 1 or more[0] not in ("--all", "--help-all")):
            ctx.fail(f"help takes a command and --all, not '{more[0]}'")
        command = self.get_command(ctx, name[0]) if more else None
        return [*name, "--help-all" if getattr(command, "has_more", False) else "--help"]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, short) for name, (_, short) in COMMANDS.items()])


def _print_version(ctx: click.Context, option: click.Parameter, wanted: bool) -> None:
    if wanted:
        click.echo(f"sparsecc {installed_version()}")
        ctx.exit()


root = LazyCommands(
    "sparsecc",
    help="A deployment compiler for sparse models: from a trained network to a smaller, faster, proven one.",
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    params=[
        click.Option(
            ["--version"],
            is_flag=True,
            is_eager=True,
            expose_value=False,
            callback=_print_version,
            help="Show the version and exit.",
        ),
        click.Option(["--debug"], is_flag=True, expose_value=False, help=DEBUG),
    ],
)
