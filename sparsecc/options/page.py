"""docs/options.md, from the table: `python -m sparsecc.options.page > docs/options.md` (`make options`)."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from sparsecc.options.row import FLAG, By, Row, rows_of
from sparsecc.options.table import GROUPS, CompareCall, CompileCall, InspectCall, ProfileCall, SearchCall
from sparsecc.targets import own_runtimes

HEAD = """# Options

Made from the table in `sparsecc/options/table.py` by `make options`; edit that. Names are the same everywhere:
`--max-drop 1%` on the command line is `max_drop=0.01` in Python and `max_drop: 0.01` in a recipe. Texts are read alike
in all three: `50%`, `5ms`, `4GiB`.
"""
COMPILE = """
## sparsecc compile

`sparsecc.compile(model, …)`; a search takes these too, but for those that its points set and for goals.
"""
SEARCH = """
## sparsecc search

`sparsecc.search(model, …)`: what it takes besides the options above.
"""
OTHERS = {"inspect": InspectCall, "profile": ProfileCall, "compare": CompareCall}
"""Verbs with a table of their own."""
COLUMNS = "| command line | Python | default | File | what it does |\n|---|---|---|---|---|\n"
BAR = "\\|"
"""A bar within a cell."""
FOOT = """
"File" is what a recipe may say, from whomever it comes ([SECURITY.md](../SECURITY.md)): "beside it" takes samples that
lie beside the recipe, "never" has to be given on the command line or in Python, "–" is no option of a recipe. From a
file `target` takes only runtimes that need no drivers of a GPU, for those run outside of the sandbox, and `build` only
keys that name no file and no machine.
"""


def page() -> str:
    """The whole page as Markdown."""
    compiled, searched = rows_of(CompileCall), rows_of(SearchCall)
    own = [row for name, row in searched.items() if name not in compiled]
    old = {now: was for row in compiled.values() for was, now in _old(row)}
    lines = [HEAD, COMPILE, *_sections(compiled.values()), SEARCH, *_sections(own)]
    for verb, table in OTHERS.items():
        lines += [
            f"\n## sparsecc {verb}\n\n`sparsecc.{verb}(…)`\n\n{COLUMNS}",
            *map(_line, rows_of(table).values()),
        ]
    lines.append(FOOT)
    lines.append("\n## Old names\n\nThey work for one release, with a warning.\n\n| old | now |\n|---|---|\n")
    lines += [f"| `{was}` | `{now}` |\n" for now, was in old.items()]
    return "".join(lines)


def _old(row: Row) -> Iterable[tuple[str, str]]:
    """(old spelling, spelling of now) in Python and recipes, and on the command line."""
    yield from ((was, row.name) for was in row.was)
    yield from ((was, row.flag) for was in row.was_flags)


def _sections(rows: Iterable[Row]) -> Iterable[str]:
    listed = list(rows)
    for group in GROUPS:
        if found := [row for row in listed if row.group == group]:
            yield f"\n### {group}\n\n{COLUMNS}"
            yield from map(_line, found)


def _line(row: Row) -> str:
    value = "" if row.kind is FLAG else f" {row.kind.metavar}"
    flags = ", ".join(f"`{flag}{value}`" for flag in row.flags)
    default = "true" if row.default is True else row.shown_default or ""
    cells = (flags, f"`{row.name}`", default, _in_a_file(row), row.about(_own_targets()))
    return f"| {' | '.join(cell.replace('|', BAR) for cell in cells)} |\n"


def _own_targets() -> list[str]:
    """Without those of other packages that are installed here."""
    return [target.name for runtime in own_runtimes() for target in runtime.TARGETS]


def _in_a_file(row: Row) -> str:
    if By.RECIPE not in row.by:
        return "–"
    if row.never_in_a_file:
        return "never"
    if row.refused_in_a_file is not None:
        return "in part"
    return "beside it" if row.names_code else "yes"


if __name__ == "__main__":
    sys.stdout.write(page())
