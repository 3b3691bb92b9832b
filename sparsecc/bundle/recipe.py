"""The file of a recipe: plain YAML of bounded size and depth, from whoever wrote it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sparsecc.errors import InputError

LARGEST = 1 << 16
"""Bytes that a recipe may have."""
DEEPEST = 4
"""The deepest that is written: options, inputs, an input's three shapes, one of them."""
SCHEMA = "sparsecc.recipe/1"

ABOUT = frozenset({"schema", "model", "input_sha256", "sparsecc"})
"""Keys that describe where a recipe came from; they are no options."""


def load_recipe(path: str) -> dict[Any, Any]:
    """The mapping in a recipe file. InputError for one that cannot be read, is too large or nested too deeply, is no
    mapping, or uses YAML aliases or tags."""
    import yaml  # here, so that --help does not load it

    text = _text(path)
    try:
        _check_shape(path, yaml.parse(text, Loader=yaml.SafeLoader))
        recipe = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        where = getattr(error, "problem_mark", None)
        line = f" (line {where.line + 1})" if where is not None else ""
        problem = getattr(error, "problem", None) or "it cannot be read"
        raise InputError(
            f"{path}{line} is not plain YAML: {problem}; write one `option: value` a line"
        ) from error
    if not isinstance(recipe, dict):
        raise InputError(f"{path} is no recipe: write one `option: value` a line, for example `ratio: 0.5`")
    schema = recipe.get("schema", SCHEMA)
    if schema != SCHEMA:
        raise InputError(
            f"{path} has the schema '{schema}', not {SCHEMA}; use a recipe that this version wrote"
        )
    return recipe


def _check_shape(path: str, events: Iterable[object]) -> None:
    """Refuse aliases and deep nesting while parsing: both cost far more to load than to write."""
    import yaml

    depth = 0
    for event in events:
        if isinstance(event, yaml.AliasEvent):
            raise InputError(f"{path}: YAML aliases are not allowed in a recipe; write the value out")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise InputError(f"{path} is nested too deeply for a recipe; write one `option: value` a line")


def _text(path: str) -> str:
    try:
        with Path(path).open("rb") as file:
            content = file.read(LARGEST + 1)
    except OSError as error:
        raise InputError(f"cannot read the recipe {path}: {error.strerror}; check the path") from error
    if len(content) > LARGEST:
        raise InputError(f"{path} is larger than {LARGEST} bytes, too large for a recipe; check the path")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text, so no recipe; check the path") from error
