"""Names that options had before: they work for one release, with a word about the new one."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from sparsecc.errors import InputError
from sparsecc.escaping import quoted
from sparsecc.options.row import Row, rows_of
from sparsecc.options.table import CompileCall


def old_names() -> dict[str, Row]:
    """Old name -> the row that has it now."""
    return {old: row for row in rows_of(CompileCall).values() for old in row.was}


def old_flags() -> dict[str, str]:
    """Old flag -> the one of now."""
    return {old: row.flag for row in rows_of(CompileCall).values() for old in row.was_flags}


def renamed(given: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """(the options by the names of now, a line for each that had an old one).

    Beside `calib_memory`, which is `working_memory` now, `working_memory` is the goal that is `footprint` now.
    InputError where an option has both of its names.
    """
    old = dict(given)
    if "calib_memory" in old and "working_memory" in old:
        old["footprint"] = old.pop("working_memory")
    rows, found, told = old_names(), {}, []
    for name, value in old.items():
        row = rows.get(name)
        now = name if row is None else row.name
        if now in found or (row is not None and now in old):
            raise InputError(
                f"option {quoted(name)} is {now} now, which is given too: leave {quoted(name)} out"
            )
        if row is not None:
            told.append(f"option {quoted(name)} is called {now} now: its old name goes with the next release")
        found[now] = value
    return found, told


def warned(given: Mapping[str, Any], depth: int) -> dict[str, Any]:
    """The options by the names of now; DeprecationWarning at the caller `depth` calls up for each old one."""
    found, told = renamed(given)
    for line in told:
        warnings.warn(line, DeprecationWarning, stacklevel=depth + 1)
    return found
