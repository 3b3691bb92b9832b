"""Which options a file may set. A recipe or build.json may come from anyone: it is data, and nothing it names runs.

The table of options says it for every option of `compile`, `sparsecc/options/builder_keys.py` for builders' keys.
Functions, devices, plug-ins, caches and the limits of a worker come from the command line or a Python call alone,
and samples from a file only where they lie beside it: those are left out, with a line that says so.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sparsecc.bundle.recipe import ABOUT, load_recipe
from sparsecc.errors import InputError, unknown
from sparsecc.escaping import one_line, quoted
from sparsecc.options import NO_SAMPLES, SELF, SYNTHETIC, CompileCall, rows_of
from sparsecc.options.builder_keys import LeftOut, build_settings
from sparsecc.options.renamed import renamed
from sparsecc.options.row import By, Row


def not_given_again(left: Iterable[LeftOut], given: Mapping[str, Any]) -> list[LeftOut]:
    """What was left out of a file and is not among the options that stand above it."""
    again = {*given, *(f"build {key}" for key in given.get("build", ()))}
    return [one for one in left if one.option not in again]


def file_rows() -> dict[str, Row]:
    """The options that a file may name, by name."""
    return {name: row for name, row in rows_of(CompileCall).items() if By.RECIPE in row.by}


def read_recipe(path: str) -> tuple[dict[str, Any], list[LeftOut], list[str]]:
    """(the options that a recipe sets, what was left out of it, a line for each option by an old name).

    InputError for a file that is no recipe, and for what `own_options` refuses.
    """
    rows = file_rows()
    spelled = {flag.lstrip("-").replace("-", "_"): row.name for row in rows.values() for flag in row.flags}
    given: dict[str, Any] = {}
    for key, value in load_recipe(path).items():
        name = str(key).replace("-", "_")
        if name not in ABOUT:
            given[name if name in rows else spelled.get(name, name)] = value
    try:
        now, told = renamed(given)
        taken, left = own_options(now, Path(path).parent)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return taken, left, [f"{path}: {line}" for line in told]


def own_options(given: Mapping[str, Any], folder: Path) -> tuple[dict[str, Any], list[LeftOut]]:
    """(the options that a file in `folder` may set, as `CompileCall` has them; what was left out of it).

    Paths come back with `folder` before them. InputError for a name that is none, or a value of another kind.
    """
    rows, left = file_rows(), []
    taken: dict[str, Any] = {}
    for name, value in given.items():
        if name not in rows:
            raise unknown("option", "options", one_line(str(name), 60), tuple(rows))
        row = rows[name]
        if value is None or (name, value) == ("device", "local"):
            continue
        if name == "build":
            keys, more = build_settings(value)
            taken[name] = row.take(keys)
            left += more
        elif row.never_in_a_file or row.names_code:
            path, why = ("", row.never_in_a_file) if row.never_in_a_file else _samples_beside(folder, value)
            if why:
                left.append(_left_out(row, value, why))
            else:
                taken[name] = path
        elif row.refused_in_a_file is not None and (why := row.refused_in_a_file(row.take(value))):
            left.append(_left_out(row, value, why))
        else:
            taken[name] = row.take(value)
    return taken, left


def _left_out(row: Row, value: Any, why: str) -> LeftOut:
    decides = row.names_code or row.refused_in_a_file is not None
    return LeftOut(row.name, f"is {quoted(str(value), 60)}, {why}", row.flag, decides)


def _samples_beside(folder: Path, value: Any) -> tuple[str, str]:
    """(where the samples lie that a file names, "") or ("", why they are not taken)."""
    if value in (SYNTHETIC, SELF, NO_SAMPLES):
        return value, ""
    if not isinstance(value, str) or ":" in value:
        return "", "which names code to run, or no file"
    steps = Path(value).parts
    if not steps or not value.isprintable() or "\\" in value or os.path.isabs(value) or ".." in steps:
        return "", "a path outside its folder"
    path = folder
    for step in steps:
        path = path / step
        if path.is_symlink():
            return "", "a path through a link"
    if not path.exists():
        return "", "which is not beside it"
    if path.suffix.lower() == ".jsonl":
        return "", "whose lines may name other files"
    tokenizer = [path.with_name("tokenizer.json")] if path.suffix.lower() == ".txt" else []
    read = path.rglob("*") if path.is_dir() else [path, *tokenizer]
    if any(os.path.lexists(one) and not _is_plain(one) for one in read):
        return "", "which holds a link or something else than plain files"
    return str(path), ""


def _is_plain(path: Path) -> bool:
    """A folder, or a file with one name: a second one could lie anywhere."""
    facts = path.lstat()
    return stat.S_ISDIR(facts.st_mode) or (stat.S_ISREG(facts.st_mode) and facts.st_nlink == 1)
