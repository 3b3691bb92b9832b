"""`--recipe recipe.yaml`: options from a file. The command line overrides it; it may name no code to run."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from sparsecc.cli.values import closest
from sparsecc.errors import InputError

LARGEST = 1 << 16
"""Bytes that a recipe may have."""
DEEPEST = 4
"""The deepest that is written: options, inputs, an input's three shapes, one of them."""

CODE = re.compile(r"^py:|\.py:")
"""How a value names a function to run."""

SCHEMA = "sparsecc.recipe/1"
KEYED = frozenset({"build", "quantize_options", "sparsity_options"})
"""Options that are mappings; the command line writes them as KEY=VALUE."""
ABOUT = frozenset({"schema", "model", "input_sha256", "sparsecc"})
"""Keys that describe where a recipe came from; they are no options."""


def read_recipe(path: str, options: Collection[str], spelled: Mapping[str, str]) -> dict[str, Any]:
    """Option name -> value from a recipe file, as the command line would write it.

    `options` are the names allowed; `spelled` maps other spellings (`calib`) to them. InputError for a file
    that cannot be read, is too large, is no mapping of options, or uses YAML aliases or tags.
    """
    recipe = _load(path)
    values: dict[str, Any] = {}
    for key, value in recipe.items():
        if key in ABOUT:
            continue
        name = str(key).replace("-", "_")
        name = spelled.get(name, name)
        try:
            closest(name, "option", sorted(options))
        except ValueError as error:
            raise InputError(f"{path}: {error}") from error
        if value is not None:
            values[name] = _checked(path, str(key), value)
    return values


def _load(path: str) -> dict[Any, Any]:
    import yaml

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


def names_code(value: Any) -> bool:
    """Whether an option's value names a function to run, which only the command line may."""
    return isinstance(value, str) and CODE.search(value) is not None


def _checked(path: str, key: str, value: Any) -> Any:
    """A scalar, a list of scalars, or for inputs a mapping of names to shapes, spelled as the option is."""
    if key in {"inputs", "input"} and isinstance(value, dict):
        return [_input_text(path, name, shape) for name, shape in value.items()]
    if key.replace("-", "_") in KEYED and isinstance(value, dict):
        return [f"{name}={part}" for name, part in value.items()]
    for part in value if isinstance(value, list) else [value]:
        if not isinstance(part, str | int | float | bool):
            raise InputError(
                f"{path}: '{key}' must be a value or a list of values; see recipe.yaml of a bundle"
            )
    return value


def _input_text(path: str, name: Any, shape: Any) -> str:
    """x: [1, 3] -> `x:1x3`; x: [[1, 3], [2, 3], [4, 3]] -> `x:1x3|2x3|4x3`."""
    if not isinstance(shape, list) or not shape:
        raise InputError(
            f"{path}: the shape of input '{name}' must be a list of sizes; write [1, 3, 224, 224]"
        )
    shapes = shape if isinstance(shape[0], list) else [shape]
    return f"{name}:" + "|".join("x".join(str(size) for size in one) for one in shapes)
