"""The file of a recipe: plain YAML of bounded size and depth, from whoever wrote it."""

from __future__ import annotations

from typing import Any

from sparsecc.errors import InputError
from sparsecc.system.plain_yaml import read_yaml

DEEPEST = 4
"""The deepest that is written: options, inputs, an input's three shapes, one of them."""
SCHEMA = "sparsecc.recipe/1"

ABOUT = frozenset({"schema", "model", "input_sha256", "sparsecc"})
"""Keys that describe where a recipe came from; they are no options."""


def load_recipe(path: str) -> dict[Any, Any]:
    """The mapping in a recipe file. InputError for one that cannot be read, is too large or nested too deeply, is no
    mapping, or uses YAML aliases or tags."""
    recipe = read_yaml(path, "recipe", deepest=DEEPEST, how="write one `option: value` a line")
    if not isinstance(recipe, dict):
        raise InputError(f"{path} is no recipe: write one `option: value` a line, for example `ratio: 0.5`")
    schema = recipe.get("schema", SCHEMA)
    if schema != SCHEMA:
        raise InputError(
            f"{path} has the schema '{schema}', not {SCHEMA}; use a recipe that this version wrote"
        )
    return recipe
