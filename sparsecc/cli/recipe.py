"""`--recipe recipe.yaml`: options from a file. The command line overrides it; what it may say is in
`sparsecc/bundle/foreign.py`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from sparsecc.bundle.foreign import LeftOut, own_options
from sparsecc.bundle.recipe import ABOUT, load_recipe
from sparsecc.cli.values import closest
from sparsecc.errors import InputError

KEYED = frozenset({"build", "quantize_options", "sparsity_options"})
"""Options that are mappings; the command line writes them as KEY=VALUE."""


def read_recipe(
    path: str, options: Collection[str], spelled: Mapping[str, str]
) -> tuple[dict[str, Any], list[LeftOut]]:
    """(option name -> value from a recipe file, as the command line would write it; what a file may not set).

    `options` are the names allowed; `spelled` maps other spellings (`calib`) to them. InputError for a file
    that cannot be read, is too large, is no mapping of options, or uses YAML aliases or tags.
    """
    values: dict[str, Any] = {}
    for key, value in load_recipe(path).items():
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
    try:
        taken, left = own_options(values, Path(path).parent)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return {name: _pairs(value) for name, value in taken.items()}, left


def _pairs(value: Any) -> Any:
    """A mapping as KEY=VALUE texts."""
    return [f"{key}={part}" for key, part in value.items()] if isinstance(value, dict) else value


def _checked(path: str, key: str, value: Any) -> Any:
    """A scalar, a list of scalars, or for inputs a mapping of names to shapes, spelled as the option is."""
    if key in {"inputs", "input"} and isinstance(value, dict):
        return [_input_text(path, name, shape) for name, shape in value.items()]
    if key.replace("-", "_") in KEYED and isinstance(value, dict):
        return _pairs(value)
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
