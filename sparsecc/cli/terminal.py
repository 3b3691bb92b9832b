"""Where a command speaks: its result to stdout, everything else to stderr."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsecc.cli.run_log import trail
from sparsecc.cli.streams import stdout_failure
from sparsecc.errors import SystemFailureError
from sparsecc.system.files import write_whole

if TYPE_CHECKING:
    from sparsecc.cli.progress import OnEvent
    from sparsecc.cli.view import Block

PLAIN = str.maketrans(
    {"→": ">", "×": "x", "−": "-", "…": ".", "–": "-", "·": "-", "✓": "+", "✗": "x", "±": "~", "─": "-"}
)
PIPE_WIDTH = 120


@dataclass(frozen=True)
class Terminal:
    """How the user wants to be spoken to. A view is a function from the result to blocks of text."""

    as_json: bool = False
    quiet: bool = False
    verbose: bool = False

    def result(self, data: Mapping[str, Any], view: Callable[[Any], Sequence[Block]]) -> None:
        """Print a command's result: JSON when asked for, otherwise what `view` makes of it."""
        if self.as_json:
            write_stdout(json.dumps(data, indent=2, default=str) + "\n")
        elif not self.quiet:
            write_stdout(self._drawn(view(data)))

    def text(self, text: str) -> None:
        """Print a result that is text already (an XML or Markdown document)."""
        write_stdout(text if text.endswith("\n") else text + "\n")

    def note(self, message: str) -> None:
        """One line on stderr, unless quiet."""
        from sparsecc.escaping import one_line

        if not self.quiet:
            trail().say("info", one_line(message))

    @contextmanager
    def progress(self) -> Iterator[OnEvent]:
        """Yields the `on_event` for the API; a bar appears on stderr once the work takes over two seconds."""
        from sparsecc.cli.progress import Progress

        ours = trail()
        quiet = self.quiet or ours.speaks_json
        with Progress(lines=self.verbose and not quiet, bar=not quiet and sys.stderr.isatty()) as shown:

            def on_event(event: Mapping[str, Any]) -> None:
                ours.add("info", event)
                shown.on_event(event)
                if "say" in event and not quiet:
                    self.note(str(event["say"]))

            yield on_event

    def _drawn(self, blocks: Sequence[Block]) -> str:
        from sparsecc.cli.render import draw

        is_terminal = sys.stdout.isatty()
        width = shutil.get_terminal_size().columns if is_terminal or "COLUMNS" in os.environ else PIPE_WIDTH
        text = draw(blocks, width=width, colour=is_terminal and "NO_COLOR" not in os.environ)
        return text if _speaks_unicode() else text.translate(PLAIN)


def write_stdout(text: str) -> None:
    """Write to stdout. A reader that went away (`| head`) ends the command quietly."""
    encoding = sys.stdout.encoding or "utf-8"
    try:
        sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))
        sys.stdout.flush()
    except BrokenPipeError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0) from error
    except OSError as error:
        raise stdout_failure(error) from error


def write_file(path: str, text: str) -> None:
    """Write `text` to a file the user named. SystemFailureError when the file cannot be written."""
    trail().will_write(path)
    try:
        write_whole(Path(path), text.encode())
    except OSError as error:
        raise SystemFailureError(
            f"cannot write {path}: {error.strerror}; choose another path or free the disk"
        ) from error


def _speaks_unicode() -> bool:
    return (sys.stdout.encoding or "utf-8").lower().replace("-", "") in {"utf8", "utf16", "utf32"}
