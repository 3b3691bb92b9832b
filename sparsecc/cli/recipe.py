"""`--recipe recipe.yaml`: options from a file. The command line overrides it; what it may say is in
`sparsecc/bundle/foreign.py`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sparsecc.bundle.foreign import not_given_again, read_recipe
from sparsecc.errors import InputError
from sparsecc.options import CompileOptions, rows_of
from sparsecc.options.builder_keys import all_left_out
from sparsecc.options.row import PAIRS


def above_recipe(path: str, given: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """(the options of a recipe with those of the command line over them, what there is to say of it).

    A budget on the command line replaces that of the recipe, and pairs add to its pairs. InputError where the recipe
    says what no file may, and the compile would be another one without it.
    """
    recipe, left, told = read_recipe(path)
    rows = rows_of(CompileOptions)
    alone = {name for name, row in rows.items() if row.alone}
    if alone & set(given):
        recipe = {name: value for name, value in recipe.items() if name not in alone}
    missing = not_given_again(left, given)
    if any(one.decides for one in missing):
        raise InputError(all_left_out(path, missing))
    told += [one.line(path) for one in missing]
    both = [name for name in recipe if name in given and rows[name].kind is PAIRS]
    pairs = {name: {**recipe[name], **given[name]} for name in both}
    return {**recipe, **given, **pairs}, told
